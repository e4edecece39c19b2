"""`homeport setup-vllm`: the second engine, in an environment of its own.

Exit codes as in `router.cli`: 0 done, 1 it failed, 130 after Ctrl-C.
"""

import os
import sys
from typing import Annotated

import typer

from cluster.commands import Progress, SetupError
from cluster.install import sentence_for
from cluster.vllm_env import kind_of
from cluster.vllm_install import VllmSetup
from router.command_line import FAILED, refuse
from serving.source import SourceError, bundled_model


def setup_vllm(
    cpu: Annotated[
        bool, typer.Option("--cpu", help="The build for CPUs, also where there is a GPU.")
    ] = False,
    model: Annotated[
        bool, typer.Option("--bundled-model/--no-bundled-model", help="Make the bundled model for it too.")
    ] = True,
) -> None:
    """Install vLLM on this machine, once: for models with `engine: vllm`. Takes minutes and some GiB of disk."""
    kind = "cpu" if cpu else kind_of(os.environ)
    progress = Progress(sys.stdout)
    try:
        VllmSetup(os.environ, kind, progress).run(bundled_model() if model else None)
    except (SetupError, SourceError) as error:
        refuse(str(error), FAILED)
    except OSError as error:
        refuse(sentence_for(error), FAILED)
    except KeyboardInterrupt:
        progress.say("Set-up was interrupted; the next one begins this step again.")
        raise typer.Exit(130) from None
