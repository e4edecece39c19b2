"""The llama.cpp engine, on the low-level bindings of llama-cpp-python.

The only file that imports llama_cpp. What llama.cpp answers with an abort of the process (a bad sequence id, more
tokens than the batch, an index without logits) is made impossible here, not caught. Turns, their order and their
text are the loop's matter (decode_loop.py), the chat template is chat_format.py's.
"""

import contextlib
import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from llama_cpp import llama_cpp as _bindings

from serving.backend import Span
from serving.batching import Budget
from serving.chat_format import ChatFormat, TemplateBroken
from serving.decode_loop import DecodeLoop
from serving.engine import Emit, LoadError, ModelFacts, PromptError, PromptTooLong, Sampling, Turn
from serving.gguf import GgufError, read_head
from serving.llama_sampler import sampler_chain
from serving.readers import Readers

# Ctypes bindings: their annotations do not say what they take.
lib: Any = _bindings

logger = logging.getLogger(__name__)

_WARN, _ERROR = 3, 4  # of enum ggml_log_level; the bindings do not name them


class LlamaEngine:
    """One GGUF model with one context, as `Engine` says.

    `batch`: tokens that one decode takes at most; a cancel during a prompt loses at most these. `flash_attention`:
    off, a greedy text depends less on what other sequences do at the same time (not never: a prompt is cut into
    other chunks beside a neighbour, and rounding follows the chunks). `memory_bytes`: refuse to load a model that
    needs more (None: more than the machine has free).
    """

    def __init__(
        self,
        path: Path,
        context: int,
        sequences: int,
        threads: int,
        *,
        batch: int = 256,
        flash_attention: bool = True,
        memory_bytes: int | None = None,
    ) -> None:
        if min(context, sequences, threads, batch) < 1:
            raise ValueError("context, sequences, threads and batch must be at least 1")
        batch = max(batch, sequences)
        self._llama = _Llama(path, context, sequences, threads, batch, flash_attention, memory_bytes)
        self._loop = DecodeLoop(self._llama, context, sequences, Budget(batch, max(1, batch // 4)))
        self._facts: ModelFacts | None = None

    @property
    def facts(self) -> ModelFacts:
        if self._facts is None:
            raise RuntimeError("the model is not loaded")
        return self._facts

    @property
    def tokens_generated(self) -> int:
        return self._loop.tokens_generated

    @property
    def tokens_evaluated(self) -> int:
        return self._loop.tokens_evaluated

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        begun = time.monotonic()
        self._loop.load(progress)
        self._facts = self._llama.facts(time.monotonic() - begun)
        return self._facts

    def start(self, emit: Emit) -> None:
        self._loop.start(emit)

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        return self._llama.prompt(messages)

    def begin(self, turn: Turn) -> None:
        self._loop.begin(turn)

    def cancel(self, turn: int) -> None:
        self._loop.cancel(turn)

    def erase(self, sequence: int) -> None:
        self._loop.erase(sequence)

    def held(self, sequence: int) -> int:
        return self._loop.held(sequence)

    def close(self) -> None:
        self._loop.close()


class _Batch:
    """The arrays that llama_decode reads, made once."""

    def __init__(self, size: int) -> None:
        self.token = (lib.llama_token * size)()
        self.pos = (lib.llama_pos * size)()
        self.sequence = (lib.llama_seq_id * size)()
        self.output = (ctypes.c_int8 * size)()
        one_each = (ctypes.c_int32 * size)(*([1] * size))
        id_pointer = ctypes.POINTER(lib.llama_seq_id)
        width = ctypes.sizeof(lib.llama_seq_id)
        ids = (id_pointer * size)(
            *(ctypes.cast(ctypes.addressof(self.sequence) + width * row, id_pointer) for row in range(size))
        )
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=ctypes.cast(self.token, ctypes.POINTER(lib.llama_token)),
            embd=None,
            pos=ctypes.cast(self.pos, ctypes.POINTER(lib.llama_pos)),
            n_seq_id=ctypes.cast(one_each, ctypes.POINTER(ctypes.c_int32)),
            seq_id=ctypes.cast(ids, ctypes.POINTER(id_pointer)),
            logits=ctypes.cast(self.output, ctypes.POINTER(ctypes.c_int8)),
        )
        self._alive = (one_each, ids)

    def fill(self, spans: Sequence[Span]) -> Any:
        """The struct for llama_decode; valid until the next fill."""
        row = 0
        for span in spans:
            count = len(span.tokens)
            end = row + count
            self.token[row:end] = span.tokens
            self.pos[row:end] = range(span.start, span.start + count)
            self.sequence[row:end] = (span.sequence,) * count
            self.output[row:end] = [0] * count
            self.output[end - 1] = span.last
            row = end
        self.struct.n_tokens = row
        return self.struct


class _Llama:
    """Every call into llama.cpp: the loop's Backend, plus `prompt` and `facts`, which need the vocabulary only."""

    def __init__(
        self,
        path: Path,
        context: int,
        sequences: int,
        threads: int,
        batch: int,
        flash_attention: bool,
        memory_bytes: int | None,
    ) -> None:
        self._path = path
        self._context_tokens = context
        self._sequences = sequences
        self._threads = threads
        self._flash_attention = flash_attention
        self._memory_bytes = memory_bytes
        self._batch_tokens = batch
        self._model: Any = None
        self._context: Any = None
        self._vocab: Any = None
        self._vocab_size = 0
        self._pieces: dict[int, bytes | None] = {}
        self._format: ChatFormat | None = None
        self._longest_piece = 1
        self._readers = Readers("the engine")  # of the vocabulary: using a freed one is a crash
        # llama.cpp asks "abort?" at every node of the graph, a thousand times a token. A Python callback there costs
        # a tenth of the speed; C's strlen on a string that is empty until `abort` answers the same question.
        self._abort = ctypes.create_string_buffer(b"", 2)
        self._log = lib.llama_log_callback(self._relay_log)  # llama.cpp keeps no reference
        self._ask_abort = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)

    # Loading

    def open(self, progress: Callable[[float], None]) -> None:
        check_file(self._path)
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        self._load_model(progress)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        self._longest_piece = self._measure_pieces()
        self._check_model()
        self._format = self._chat_format()
        self._make_context()
        progress(0.95)
        self._warm_up()
        progress(1.0)

    def _relay_log(self, level: int, text: bytes, _: object) -> None:
        """llama.cpp calls an abort that was asked for an error, in four lines."""
        if not self._abort.value:
            _log_line(level, text)

    def _load_model(self, progress: Callable[[float], None]) -> None:
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP

        @lib.llama_progress_callback  # type: ignore[untyped-decorator]
        def report(share: float, _: object) -> bool:
            try:
                progress(0.9 * share)
            except Exception:
                logger.exception("the receiver of the loading progress failed")
            return not self._abort.value

        params.progress_callback = report
        with _errors() as lines:
            self._model = lib.llama_model_load_from_file(str(self._path).encode(), params)
        if self._model is None:
            raise LoadError(self._why_not(lines))

    def _why_not(self, lines: Sequence[str]) -> str:
        said = "; ".join(lines) or "it gave no reason"
        if self._abort.value:
            return f"loading {self._path.name} was given up: the engine was closed"
        if "unknown model architecture" in said:
            return f"{self._path.name} is of a kind that this llama.cpp does not know yet. Use another model. ({said})"
        return f"llama.cpp cannot load {self._path}: {said}. Try another file of this model."

    def _check_model(self) -> None:
        """Refuse what cannot be served, before memory is taken for it."""
        name = self._path.name
        if not lib.llama_model_has_decoder(self._model) or lib.llama_model_has_encoder(self._model):
            raise LoadError(
                f"{name} is no text generator: homeport serves decoder-only models. Choose another."
            )
        trained = lib.llama_model_n_ctx_train(self._model)
        if self._context_tokens > trained:
            logger.warning(
                "%s was trained for %d tokens of context and is asked for %d: answers get worse beyond",
                name,
                trained,
                self._context_tokens,
            )
        weights = lib.llama_model_size(self._model)
        kv = self._sequences * self._context_tokens * self._kv_bytes_per_token()
        free = psutil.virtual_memory().available
        limit = free if self._memory_bytes is None else min(free, self._memory_bytes)
        if weights + kv > limit:
            raise LoadError(
                f"{name} does not fit: its weights take {_mib(weights)} and {self._sequences} x "
                f"{self._context_tokens} tokens of context take {_mib(kv)}, but {_mib(limit)} are free for it. "
                f"Give it more memory, a smaller context or a smaller quantization."
            )

    def _chat_format(self) -> ChatFormat | None:
        template = lib.llama_model_chat_template(self._model, None)
        if not template:
            return None
        bos = self._special(lib.llama_vocab_bos(self._vocab))
        eos = self._special(lib.llama_vocab_eos(self._vocab))
        try:
            return ChatFormat(template.decode(errors="replace"), bos, eos, datetime.now)
        except TemplateBroken as error:
            raise LoadError(f"{self._path.name}: {error}. Use another file of this model.") from error

    def _special(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = lib.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")

    def _make_context(self) -> None:
        params = lib.llama_context_default_params()
        params.n_seq_max = self._sequences
        params.n_ctx = self._sequences * padded(self._context_tokens)
        params.kv_unified = False  # each sequence has its own cells: nobody's tokens slow or touch another's
        params.swa_full = True  # a sliding window would let a history be cut only near its end
        params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_outputs_max = self._sequences
        params.n_threads = params.n_threads_batch = self._threads
        if not self._flash_attention:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with _errors() as lines:
            self._context = lib.llama_init_from_model(self._model, params)
        if self._context is None:
            raise LoadError(
                f"llama.cpp cannot make a context of {self._sequences} x {self._context_tokens} tokens for "
                f"{self._path.name}: {'; '.join(lines) or 'it gave no reason'}. Give it more memory or less context."
            )
        flag = ctypes.cast(self._abort, ctypes.c_void_p)
        lib.llama_set_abort_callback(self._context, self._ask_abort, flag)
        self._memory = lib.llama_get_memory(self._context)
        self._window = lib.llama_model_n_swa(self._model)
        self._batch = _Batch(self._batch_tokens)

    def _warm_up(self) -> None:
        """One decode: it reads the weights once and makes the threads that will compute from now on."""
        token = max(0, lib.llama_vocab_bos(self._vocab))
        if not self.decode([Span(0, 0, [token], True)]):
            raise LoadError(f"loading {self._path.name} was given up: the engine was closed")
        self.clear()

    def shut(self) -> None:
        self._readers.close()
        if self._context is not None:
            lib.llama_free(self._context)
        if self._model is not None:
            lib.llama_model_free(self._model)
        self._context = self._model = self._vocab = None
        lib.llama_log_set(_log_without_engine, None)  # the other callback may be freed with this object

    # What is known

    def facts(self, load_s: float) -> ModelFacts:
        text = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, text, len(text))
        return ModelFacts(
            context=self._context_tokens,
            sequences=self._sequences,
            description=text.value.decode(errors="replace"),
            kv_bytes_per_token=self._kv_bytes_per_token(),
            load_s=load_s,
            template=self._format is not None,
            vocabulary=self._vocab_size,
        )

    def _kv_bytes_per_token(self) -> int:
        """Keys and values at f16 in every layer; an upper bound for models that keep less in some layers."""
        heads = lib.llama_model_n_head_kv(self._model)
        usual = lib.llama_model_n_embd(self._model) // max(1, lib.llama_model_n_head(self._model))
        architecture = self._meta("general.architecture")
        key = int(self._meta(f"{architecture}.attention.key_length") or usual)
        value = int(self._meta(f"{architecture}.attention.value_length") or usual)
        layers = lib.llama_model_n_layer(self._model)
        return int(layers * heads * (key + value) * 2)

    def _meta(self, key: str) -> str:
        value = ctypes.create_string_buffer(256)
        lib.llama_model_meta_val_str(self._model, key.encode(), value, len(value))
        return value.value.decode(errors="replace")

    # Text and tokens; `prompt` may be called from any thread

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        if self._format is None:
            raise PromptError(
                f"{self._path.name} brings no chat template: it is a base model. Use one that is tuned for chat."
            )
        return self._tokenize(self._format.render(messages))

    def _tokenize(self, text: str) -> tuple[int, ...]:
        """As transformers does it for a rendered template: special tokens are read as such, none is added."""
        data = text.encode(errors="replace")
        at_least = -(-len(data) // self._longest_piece)
        if at_least >= self._context_tokens:
            raise PromptTooLong(at_least)
        size = len(data) + 8
        while True:
            tokens = (lib.llama_token * size)()
            with self._readers.reading():
                count = lib.llama_tokenize(self._vocab, data, len(data), tokens, size, False, True)
            if count >= 0:
                return tuple(tokens[:count])
            size = -count

    def _measure_pieces(self) -> int:
        """Bytes of text that one token stands for at most, special tokens' names included."""
        text = ctypes.create_string_buffer(512)
        vocab, size, to_piece = self._vocab, len(text), lib.llama_token_to_piece
        lengths: Iterator[int] = (
            to_piece(vocab, token, text, size, 0, True) for token in range(self._vocab_size)
        )
        return max(1, *map(abs, lengths))

    def piece(self, token: int) -> bytes | None:
        try:
            return self._pieces[token]
        except KeyError:
            return self._pieces.setdefault(token, self._look_up(token))

    def _look_up(self, token: int) -> bytes | None:
        if lib.llama_vocab_is_eog(self._vocab, token):
            return None
        size = 64
        while True:
            text = ctypes.create_string_buffer(size)
            length = lib.llama_token_to_piece(self._vocab, token, text, size, 0, False)
            if length >= 0:
                return text.raw[:length]
            size = -length

    # Sampling

    def unfit(self, turn: Turn) -> str | None:
        if not all(0 <= token < self._vocab_size for token in turn.prompt):
            return f"the prompt has token ids that this model does not know (it has {self._vocab_size})"
        wrong = [token for token, _ in turn.sampling.logit_bias if not 0 <= token < self._vocab_size]
        return f"logit_bias names token {wrong[0]}; this model has {self._vocab_size}" if wrong else None

    def sampler(self, sampling: Sampling, prompt: Sequence[int]) -> Any:
        return sampler_chain(lib, sampling, prompt, self._vocab_size, self._context_tokens)

    def free(self, sampler: Any) -> None:
        lib.llama_sampler_free(sampler)

    # The context; the loop's thread only

    def decode(self, spans: Sequence[Span]) -> bool:
        result = lib.llama_decode(self._context, self._batch.fill(spans))
        if result in (0, 2):
            return bool(result == 0)
        raise RuntimeError(f"llama_decode returned {result}")

    def sample(self, sampler: Any, row: int) -> int:
        token: int = lib.llama_sampler_sample(sampler, self._context, row)
        return token

    def keep(self, sequence: int, count: int) -> int:
        cut = count and self._can_cut(sequence, count)
        if cut and lib.llama_memory_seq_rm(self._memory, sequence, count, -1):
            return count
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def _can_cut(self, sequence: int, count: int) -> bool:
        """Whether everything that the token at `count` looks back on is there. llama_memory_seq_rm does not say so for
        a sliding window: it returns True and leaves a sequence that gives wrong logits."""
        first: int = lib.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= first <= max(0, count - self._window if self._window else count)

    def present(self, sequence: int) -> int:
        last: int = lib.llama_memory_seq_pos_max(self._memory, sequence)
        return last + 1

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)

    def abort(self) -> None:
        self._abort.value = b"\x01"

    def rearm(self) -> None:
        self._abort.value = b""


def check_file(path: Path) -> None:
    """Raises LoadError for a file that is missing, unreadable, no GGUF or cut off."""
    try:
        read_head(path)
    except GgufError as error:
        raise LoadError(str(error)) from error


def padded(context: int) -> int:
    """llama.cpp gives each sequence a multiple of 256 cells."""
    return -(-context // 256) * 256


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _log_line(level: int, text: bytes) -> None:
    """llama.cpp's warnings and errors. Continued lines and everything below are dropped."""
    if level in {_WARN, _ERROR}:
        severity = logging.ERROR if level == _ERROR else logging.WARNING
        logger.log(severity, "llama.cpp: %s", text.decode(errors="replace").strip())


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log_without_engine(level: int, text: bytes, _: object) -> None:
    _log_line(level, text)


@contextlib.contextmanager
def _errors() -> Iterator[list[str]]:
    """Collects what llama.cpp logs as errors meanwhile."""
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage().removeprefix("llama.cpp: "))  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
