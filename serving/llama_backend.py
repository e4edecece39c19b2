"""The loop's Backend on llama.cpp: loads, makes room, and hands every call to the part that does it.

The bindings come as an argument, because llama_engine.py alone imports them. Turns, their order and their text are
the loop's matter (decode_loop.py), the chat template is chat_format.py's.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from serving.backend import Span
from serving.chat_format import ChatFormat, TemplateBroken
from serving.constraint import Constraint, Grammars, tokenizer_of
from serving.embed_room import USUAL_TOKENS, output_bytes, rows_of
from serving.engine import LoadError, MemoryUse, ModelFacts, PromptError, Sampled, Turn
from serving.likely import Scores
from serving.llama_context import Abort, Context, Sizes, context_params
from serving.llama_embed import POOLING, Embedder, Pooling
from serving.llama_log import LlamaLog
from serving.llama_memory import measured, mib, too_much
from serving.llama_model import LlamaModel, check_file, check_options
from serving.llama_options import EngineOptions
from serving.llama_sampler import Sampler, sampler_chain
from serving.llama_vocab import Vocabulary

logger = logging.getLogger(__name__)


class LlamaBackend:
    """One model with one context, and what needs the vocabulary only: `prompt`, `tokenize`, `constraint`, which may
    be called from any thread. `facts` and `format` stay after `shut`."""

    def __init__(
        self, lib: Any, path: Path, sizes: Sizes, options: EngineOptions, memory_bytes: int | None
    ) -> None:
        self._lib = lib
        self._path = path
        self._sizes = sizes
        self._options = options
        self._memory_bytes = memory_bytes
        self._own_bytes: int | None = None
        self._abort = Abort(lib)
        self._log = LlamaLog(lib, lambda: bool(self._abort))
        self._taken = ExitStack()
        self._vocab: Vocabulary | None = None
        self._embedder: Embedder | None = None
        self.format: ChatFormat | None = None
        self.memory = MemoryUse(0, 0, 0)
        """What the model was measured to take when it was loaded last."""

    # Loading

    def open(self, progress: Callable[[float], None]) -> None:
        check_options(self._options)
        for path in (self._path, *map(Path, self._options.lora)):
            check_file(path)
        self._log.open()
        self._lib.llama_backend_init()
        self._look_ahead()
        with self._log.collecting() as lines:
            self._model = model = LlamaModel.load(
                self._lib,
                self._path,
                self._options,
                self._log,
                self._abort,
                lambda share: progress(0.9 * share),
            )
            self._taken.callback(model.free)
            self._context = self._make_context(model)
            self._taken.callback(self._context.free)
        self.memory = measured(line for _, line in lines)
        self._vocab = vocab = Vocabulary(self._lib, model.vocab)
        self._taken.callback(vocab.close)
        self._grammars = Grammars(lambda: tokenizer_of(vocab), vocab.size, next(iter(vocab.ends), None))
        self._embedder = self._make_embedder(model, vocab)
        self.format = self._chat_format(model, vocab)
        progress(0.95)
        self._warm_up()
        progress(1.0)

    def _look_ahead(self) -> None:
        """Refuse what cannot be served, or does not fit, before memory is taken for it."""
        hollow = LlamaModel.hollow(self._lib, self._path, self._options, self._log)
        try:
            hollow.check()
            if self._sizes.context > hollow.trained_context:
                logger.warning(
                    "%s was trained for %d tokens of context and is asked for %d: answers get worse beyond",
                    self._path.name,
                    hollow.trained_context,
                    self._sizes.context,
                )
            self._check_room(hollow)
        finally:
            hollow.free()

    def _check_room(self, hollow: LlamaModel) -> None:
        """Of the slice's memory the process itself has taken some already; counted once, as a host that loads again
        has its parked sessions in there."""
        need = self._need(hollow)
        free = psutil.virtual_memory().available
        why = too_much(self._path.name, need, free)
        if self._memory_bytes is not None:
            if self._own_bytes is None:
                self._own_bytes = psutil.Process().memory_info().rss
            own = ("the host itself", self._own_bytes)
            why = too_much(self._path.name, [*need, own], self._memory_bytes) or why
        if why is not None:
            raise LoadError(why)

    def _need(self, hollow: LlamaModel) -> list[tuple[str, int]]:
        """Weights, sessions, a step's buffers, and embeddings of texts up to the usual length; on GPUs or not, only
        what is not on one counts."""
        share = hollow.host_share(self._options.gpu_layers)
        adapters = sum(Path(path).stat().st_size for path in self._options.lora)
        kv = hollow.kv_bytes_per_token(self._options.kv_type)
        main = hollow.foresee(self._context_params(), self._log) or MemoryUse(0, kv * self._sizes.cells, 0)
        embedding = 0
        if _pooling(hollow) is not None:
            tokens = min(self._sizes.context, USUAL_TOKENS)
            vocabulary = self._lib.llama_vocab_n_tokens(hollow.vocab)
            rows = rows_of(self._sizes.batch, vocabulary)
            params = self._embed_params(hollow, tokens, rows)
            use = hollow.foresee(params, self._log) or MemoryUse(0, kv * tokens, 0)
            embedding = round(use.kv * share) + use.compute + output_bytes(rows, vocabulary, hollow.width)
        contexts = f"{self._sizes.sequences} x {self._sizes.context} tokens of context"
        return [
            ("weights", round((hollow.weight_bytes + adapters) * share)),
            (contexts, round(main.kv * share)),
            ("the buffers of a step", main.compute),
            ("embeddings", embedding),
        ]

    def _context_params(self) -> Any:
        return context_params(self._lib, self._sizes, self._options)

    def _embed_params(self, model: LlamaModel, tokens: int, rows: int) -> Any:
        params = context_params(self._lib, Sizes(tokens, 1, self._sizes.threads, rows), self._options)
        params.embeddings = True
        if model.pooling:  # else it is none already, and llama.cpp warns of a word against the model's
            params.pooling_type = self._lib.LLAMA_POOLING_TYPE_NONE
        params.n_outputs_max = params.n_outputs_max_per_seq = rows
        return params

    def _make_context(self, model: LlamaModel) -> Context:
        pointer, why = model.context(self._context_params(), self._log)
        if pointer is None:
            raise LoadError(
                f"llama.cpp cannot make a context of {self._sizes.sequences} x {self._sizes.context} tokens for "
                f"{self._path.name}: {why}. Give it more memory or less context."
            )
        self._abort.watch(pointer)
        cuttable = not (model.window or model.recurrent)
        return Context(self._lib, pointer, self._sizes.batch, cuttable, model.window, model.recurrent)

    def _make_embedder(self, model: LlamaModel, vocab: Vocabulary) -> Embedder | None:
        pooling = _pooling(model)
        if pooling is None:
            return None

        def make(tokens: int, rows: int) -> Any:
            if tokens > USUAL_TOKENS:
                self._check_embedding(model, tokens)
            pointer, why = model.context(self._embed_params(model, tokens, rows), self._log)
            if pointer is None:
                raise RuntimeError(f"llama.cpp cannot make a context for embeddings: {why}")
            self._abort.watch(pointer)
            return pointer

        embedder = Embedder(
            self._lib,
            make,
            pooling,
            self._sizes.context,
            self._sizes.batch,
            vocab.size,
            model.width,
        )
        self._taken.callback(embedder.free)
        return embedder

    def _check_embedding(self, model: LlamaModel, tokens: int) -> None:
        """Raises RuntimeError when a text longer than the usual ones has no room. Nothing is set aside for them."""
        need = tokens * model.kv_bytes_per_token(self._options.kv_type)
        free = psutil.virtual_memory().available
        if self._memory_bytes is not None:
            free = min(free, self._memory_bytes - psutil.Process().memory_info().rss)
        if need > free:
            raise RuntimeError(
                f"an embedding of {tokens} tokens takes {mib(need)}, {mib(max(0, free))} are free"
            )

    def _chat_format(self, model: LlamaModel, vocab: Vocabulary) -> ChatFormat | None:
        path = self._options.chat_template
        if path is None:
            template, origin, remedy = model.template, self._path.name, "Use another file of this model"
        else:
            origin, remedy = path, "Correct it"
            try:
                template = Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise LoadError(
                    f"chat_template: {path} cannot be read: {error}. Correct the path."
                ) from error
        if not template:
            return None
        eos = self._lib.llama_vocab_eos(model.vocab)
        try:
            return ChatFormat(
                template, vocab.name(vocab.begin), vocab.name(eos), datetime.now, vocab.specials
            )
        except TemplateBroken as error:
            raise LoadError(f"{origin}: {error}. {remedy}.") from error

    def _warm_up(self) -> None:
        """One decode: it reads the weights once and makes the threads that will compute from now on."""
        if not self.decode([Span(0, 0, [self._vocabulary().begin or 0], True)]):
            raise LoadError(f"loading {self._path.name} was given up: the engine was closed")
        self.clear()

    def shut(self) -> None:
        self._taken.close()
        self._log.close()

    # What is known

    def facts(self, load_s: float, prompt_chunk: int, build: str) -> ModelFacts:
        """Of the model that is loaded. `build` names the engine's version."""
        options = self._options
        adapters = [check_file(Path(path)).digest[:16] for path in options.lora]
        flash = "flash" if options.flash else "plain"
        layout = [
            build,
            f"{self._sizes.cells} cells for {self._sizes.sequences}",
            options.kv_type,
            flash,
            *adapters,
        ]
        return ModelFacts(
            context=self._sizes.context,
            sequences=self._sizes.sequences,
            description=self._model.description,
            kv_bytes_per_token=self._model.kv_bytes_per_token(options.kv_type),
            load_s=load_s,
            template=self.format is not None,
            vocabulary=self._vocabulary().size,
            layout=" ".join(layout),
            prompt_chunk=prompt_chunk,
            memory=self.memory,
            embedding=self._model.width if self._embedder is not None else 0,
        )

    # Text and tokens; any thread

    def _vocabulary(self) -> Vocabulary:
        if self._vocab is None:
            raise RuntimeError("the model is not loaded")
        return self._vocab

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None,
    ) -> tuple[int, ...]:
        """As transformers does it for a rendered template: special tokens are read as such, none is added."""
        vocab = self._vocabulary()
        if self.format is None:
            raise PromptError(
                f"{self._path.name} brings no chat template: it is a base model. Use one that is tuned for chat, or "
                f"name a template in options.chat_template."
            )
        text = self.format.render(messages, tools, variables)
        return vocab.tokenize(text, self._sizes.context, begin=False, special=True)

    def tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        return self._vocabulary().tokenize(text, self._sizes.context, begin=True, special=special)

    def spell(self, text: str) -> tuple[int, ...]:
        """The tokens of a part of a text."""
        return self._vocabulary().tokenize(text, self._sizes.context, begin=False, special=False)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._vocabulary().detokenize(tokens)

    def constraint(self, grammar: str) -> Constraint:
        with self._vocabulary().reading():
            return self._grammars.compile(grammar)

    def piece(self, token: int, special: bool = False) -> bytes | None:
        return self._vocabulary().piece(token, special)

    # Sampling; the loop's thread only, as everything below

    def unfit(self, turn: Turn) -> str | None:
        size = self._vocabulary().size
        if not all(0 <= token < size for token in turn.prompt):
            return f"the prompt has token ids that this model does not know (it has {size})"
        wrong = [token for token, _ in turn.sampling.logit_bias if not 0 <= token < size]
        return f"logit_bias names token {wrong[0]}; this model has {size}" if wrong else None

    def sampler(self, turn: Turn) -> Sampler:
        followed = None if turn.constraint is None else self._grammars.follow(turn.constraint)
        chain = sampler_chain(
            self._lib, turn.sampling, turn.prompt, self._vocabulary().size, self._sizes.context
        )
        return Sampler(chain, followed)

    def free(self, sampler: Sampler) -> None:
        self._lib.llama_sampler_free(sampler.chain)

    def sample(self, sampler: Sampler, row: int) -> int:
        followed = sampler.followed
        if followed is not None and (end := followed.mask(self._context.logits(row))) is not None:
            return end
        token: int = self._lib.llama_sampler_sample(sampler.chain, self._context.pointer, row)
        if followed is not None:
            followed.accept(token)
        return token

    def sample_told(self, sampler: Sampler, row: int, top: int) -> tuple[int, Sampled]:
        scores = Scores(self._context.logits(row))
        token = self.sample(sampler, row)
        return token, scores.sampled(token, top, self._vocabulary().spelled)

    # The context

    @property
    def cuttable(self) -> bool:
        return self._context.cuttable

    def decode(self, spans: Sequence[Span]) -> bool:
        return self._context.decode(spans)

    def keep(self, sequence: int, count: int) -> int:
        return self._context.keep(sequence, count)

    def can_keep(self, sequence: int, count: int) -> bool:
        return self._context.can_keep(sequence, count)

    def present(self, sequence: int) -> int:
        return self._context.present(sequence)

    def save(self, sequence: int) -> bytes | None:
        return self._context.save(sequence)

    def load(self, sequence: int, data: bytes) -> bool:
        return self._context.load(sequence, data)

    def checkpoint(self, sequence: int) -> bytes | None:
        return self._context.checkpoint(sequence)

    def roll_back(self, sequence: int, count: int, data: bytes) -> bool:
        return self._context.roll_back(sequence, count, data)

    def copy(self, source: int, destination: int, count: int) -> bool:
        return self._context.copy(source, destination, count)

    def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        if self._embedder is None:
            raise RuntimeError("this model makes no embeddings")
        return self._embedder.embed(tokens, room)

    def clear(self) -> None:
        self._context.clear()

    def abort(self) -> None:
        self._abort.set()

    def rearm(self) -> None:
        self._abort.clear()


def _pooling(model: LlamaModel) -> Pooling | None:
    """How the model makes one vector of many; None: it makes none."""
    return POOLING.get(model.pooling, "mean")
