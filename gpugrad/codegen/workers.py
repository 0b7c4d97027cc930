"""Threads that share the work of native tasks.

A pool has one thread fewer than it is asked for: the caller works too. Its workers are Python
threads that spend their life inside one native call, without the GIL; what they wait on, pthread's
mutex and condition, is called at addresses found through ctypes. Where there are none (Windows)
there is no pool, and tasks run on the caller's thread.

How a job goes
    The caller writes the job (function, table, numbers) and publishes it by storing ``state``: a
    generation, the number of parts and the next part that nobody has, in one word. Whoever is free,
    the caller included, claims a part by a compare-and-swap of ``state`` to the next part, computes
    it and adds 1 to ``done``. When no part is left, the caller waits for those that are claimed:
    never for a thread that has not begun, so that a busy or single core costs no time slice.

Why it is right
    *A claimed part belongs to the job that was read.* A worker loads ``state``, then the job, then
    swaps. Loads stay between: the first is an acquire, the swap a release. The swap succeeds only
    if ``state`` still is what was loaded; the generation makes it differ from every other job's for
    2**40 jobs. Then the job had an unclaimed part at that moment, hence was not finished, hence the
    caller had not begun to write the next. A job read half old and half new is thrown away: its
    swap fails. Its words are atomic, so that reading them meanwhile is defined.

    *Results are seen.* The caller's writes come before its store of ``state`` (release); a worker
    reads that value, or one made from it by swaps of other workers, which continue its release
    sequence, by an acquire. A worker's writes come before its addition to ``done`` (release), which
    the caller reads by an acquire; additions of several workers form one release sequence.

    *No wake-up is lost.* A worker adds itself to ``sleeping`` and then looks at ``state``; the
    caller stores ``state`` and then looks at ``sleeping``. All four are sequentially consistent, so
    at least one sees the other: the worker does not sleep, or the caller signals. It signals while
    it holds the mutex, which the worker gives up only inside of the wait.

    *One caller at a time.* ``busy`` is taken by an atomic exchange; a second caller that finds it
    taken does its job alone. The exchange (acquire) and the store that frees it (release) order one
    job's writes of ``done`` and ``state`` before the next job's.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading

from ..backend import numpy as backend
from .machine import Machine, machine
from .shares import WHOLE

# Parts of one job: 12 bits of the state.
MOST_PARTS = (1 << 12) - 1
# Parts a job that has more to share is cut into: 4 for each core let no thread wait long for the
# last. A part costs some 50 ns to claim.
PARTS = min(MOST_PARTS, 4 * (os.cpu_count() or 1))

# Rounds a worker looks for the next job before it sleeps: some 10 us with x86's pause, then 1-2 ms
# in which it offers its core to others each time. In a loop over training steps it should not
# sleep: waking it takes 4-40 us where cores are idle, and a time slice where they are not. With all
# threads on one core a task of 0.6 us takes 2.1 us on average, 2.4-6 without the offers.
_SPIN, _OFFERS = 500, 4000
# Rounds the caller waits for the last parts before it offers its core to the thread it waits for.
_PATIENCE = 500

# Words of the control block. What different threads write lies in different cache lines.
_WORDS = {
    "state": 0, "done": 8, "function": 16, "table": 17, "numbers": 18, "sleeping": 24, "quit": 25,
    "busy": 26, "lock": 32, "unlock": 33, "wait": 34, "signal": 35, "yield": 36, "mutex": 40,
    "condition": 56,
}  # fmt: skip
_SIZE = 72  # words; mutex and condition have 128 bytes each, on all systems at most 64
_LINE = 64

_CALLS = {
    "lock": "pthread_mutex_lock", "unlock": "pthread_mutex_unlock", "wait": "pthread_cond_wait",
    "signal": "pthread_cond_signal", "yield": "sched_yield",
}  # fmt: skip

_PAUSE = {"x86": "@llvm.x86.sse2.pause()", "aarch64": "@llvm.aarch64.isb(i32 15)"}

# ``{addresses}`` stands for the addresses of the words of the control block, ``%at.<word>``.
_TEXT = """
declare void {pause.declaration}

; Whether the state has a part that nobody has claimed.
define internal i1 @open(i64 %state) nounwind {{
  %next = and i64 %state, 4095
  %high = lshr i64 %state, 12
  %parts = and i64 %high, 4095
  %open = icmp ult i64 %next, %parts
  ret i1 %open
}}

; Claim parts and compute them until none is left.
define internal void @drain(ptr %control) nounwind {{
entry:
{addresses}
  br label %look
look:
  %state = load atomic i64, ptr %at.state acquire, align 8
  %open = call i1 @open(i64 %state)
  br i1 %open, label %claim, label %end
claim:
  %function = load atomic ptr, ptr %at.function monotonic, align 8
  %table = load atomic ptr, ptr %at.table monotonic, align 8
  %numbers = load atomic ptr, ptr %at.numbers monotonic, align 8
  %following = add i64 %state, 1
  %swap = cmpxchg ptr %at.state, i64 %state, i64 %following acq_rel acquire
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %compute, label %look
compute:
  %part = and i64 %state, 4095
  %high = lshr i64 %state, 12
  %parts = and i64 %high, 4095
  %part.1 = add i64 %part, 1
  %whole.0 = shl i64 %part, 16
  %whole.1 = shl i64 %part.1, 16
  %first = udiv i64 %whole.0, %parts
  %last = udiv i64 %whole.1, %parts
  call void %function(ptr %table, ptr %numbers, i64 %first, i64 %last)
  %ignored = atomicrmw add ptr %at.done, i64 1 release
  br label %look
end:
  ret void
}}

; Wake a sleeping worker if there is one, and a part for it.
define internal void @wake(ptr %control) nounwind {{
entry:
{addresses}
  %state = load atomic i64, ptr %at.state seq_cst, align 8
  %open = call i1 @open(i64 %state)
  %sleeping = load atomic i64, ptr %at.sleeping seq_cst, align 8
  %someone = icmp sgt i64 %sleeping, 0
  %sense = and i1 %open, %someone
  br i1 %sense, label %do, label %end
do:
  %lock = load ptr, ptr %at.lock
  %unlock = load ptr, ptr %at.unlock
  %signal = load ptr, ptr %at.signal
  call i32 %lock(ptr %at.mutex)
  call i32 %signal(ptr %at.condition)
  call i32 %unlock(ptr %at.mutex)
  br label %end
end:
  ret void
}}
"""

_PARALLEL = """
; function(table, numbers, ...) in parts, with the workers of a pool or alone.
define internal void @parallel(ptr %control, ptr %function, ptr %table, ptr %numbers, i64 %parts)
    nounwind {{
entry:
{addresses}
  %busy = atomicrmw xchg ptr %at.busy, i64 1 acquire
  %free = icmp eq i64 %busy, 0
  br i1 %free, label %publish, label %alone
alone:
  call void %function(ptr %table, ptr %numbers, i64 0, i64 {whole})
  ret void
publish:
  store atomic i64 0, ptr %at.done monotonic, align 8
  store atomic ptr %function, ptr %at.function monotonic, align 8
  store atomic ptr %table, ptr %at.table monotonic, align 8
  store atomic ptr %numbers, ptr %at.numbers monotonic, align 8
  %old = load atomic i64, ptr %at.state monotonic, align 8
  %generation = lshr i64 %old, 24
  %generation.1 = add i64 %generation, 1
  %high = shl i64 %generation.1, 24
  %middle = shl i64 %parts, 12
  %state = or i64 %high, %middle
  store atomic i64 %state, ptr %at.state seq_cst, align 8
  call void @wake(ptr %control)
  call void @drain(ptr %control)
  br label %wait
wait:
  %round = phi i64 [0, %publish], [%round.1, %pause], [0, %yield]
  %done = load atomic i64, ptr %at.done acquire, align 8
  %complete = icmp eq i64 %done, %parts
  br i1 %complete, label %end, label %pause
pause:
  call void {pause}
  %round.1 = add i64 %round, 1
  %tired = icmp sgt i64 %round.1, {patience}
  br i1 %tired, label %yield, label %wait
yield:
  %give = load ptr, ptr %at.yield
  call i32 %give()
  br label %wait
end:
  store atomic i64 0, ptr %at.busy release, align 8
  ret void
}}
"""

_WORKER = """
; The life of a worker.
define void @kernel(ptr %control) nounwind {{
entry:
{addresses}
  %lock = load ptr, ptr %at.lock
  %unlock = load ptr, ptr %at.unlock
  %wait = load ptr, ptr %at.wait
  %yield = load ptr, ptr %at.yield
  br label %work
work:
  call void @drain(ptr %control)
  br label %spin
spin:
  %round = phi i64 [0, %work], [%round.1, %pause], [%round.1, %offer]
  %spinning = load atomic i64, ptr %at.state acquire, align 8
  %ready = call i1 @open(i64 %spinning)
  br i1 %ready, label %work, label %pause
pause:
  call void {pause}
  %round.1 = add i64 %round, 1
  %tired = icmp sgt i64 %round.1, {spin}
  br i1 %tired, label %slower, label %spin
slower:
  %enough = icmp sgt i64 %round.1, {spin_and_offers}
  br i1 %enough, label %lie.down, label %offer
offer:
  call i32 %yield()
  br label %spin
lie.down:
  call i32 %lock(ptr %at.mutex)
  %one.more = atomicrmw add ptr %at.sleeping, i64 1 seq_cst
  br label %look
look:
  %quit = load atomic i64, ptr %at.quit seq_cst, align 8
  %state = load atomic i64, ptr %at.state seq_cst, align 8
  %leaving = icmp ne i64 %quit, 0
  %open = call i1 @open(i64 %state)
  %up = or i1 %leaving, %open
  br i1 %up, label %get.up, label %sleep
sleep:
  call i32 %wait(ptr %at.condition, ptr %at.mutex)
  br label %look
get.up:
  %one.less = atomicrmw sub ptr %at.sleeping, i64 1 seq_cst
  call i32 %unlock(ptr %at.mutex)
  br i1 %leaving, label %leave, label %wake.others
wake.others:
  ; Two: the caller wakes one only and goes to work, and all are awake after log2 of them.
  call void @wake(ptr %control)
  call void @wake(ptr %control)
  br label %work
leave:
  ret void
}}
"""


def _render(compiler: Machine, *texts: str) -> str:
    """The functions of a text, with addresses of the control block as ``%at.<word>``."""
    machine_name = compiler.triple.split("-")[0].replace("arm64", "aarch64")
    family = "x86" if machine_name in ("x86_64", "i686") else machine_name
    pause = _PAUSE.get(family, "@llvm.donothing()")
    addresses = "\n".join(
        f"  %at.{name} = getelementptr i64, ptr %control, i64 {word}"
        for name, word in _WORDS.items()
    )
    fields = {"pause": pause, "addresses": addresses, "spin": _SPIN, "patience": _PATIENCE}
    fields["spin_and_offers"], fields["whole"] = _SPIN + _OFFERS, WHOLE
    declaration = pause.replace("i32 15", "i32")
    texts = (_TEXT.replace("{pause.declaration}", declaration), *texts)
    return "".join(text.format(**fields) for text in texts)


def parallel_text(compiler: Machine) -> str:
    """``@parallel(control, function, table, numbers, parts)`` and what it needs, as IR."""
    return _render(compiler, _PARALLEL)


def _worker_text(compiler: Machine) -> str:
    return _render(compiler, _WORKER)


_Worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Pool:
    """``threads`` - 1 workers, and the control block at ``address`` that they share."""

    def __init__(self, compiler: Machine, threads: int):
        """On a POSIX system. A system that grants fewer threads gives a smaller pool."""
        self._library = ctypes.CDLL(None)
        self.threads = threads
        self._memory = ctypes.create_string_buffer(8 * _SIZE + _LINE)
        self.address = -(-ctypes.addressof(self._memory) // _LINE) * _LINE
        for word, name in _CALLS.items():
            function = getattr(self._library, name)
            self._word(word).value = ctypes.cast(function, ctypes.c_void_p).value
        self._call("pthread_mutex_init", "mutex", None)
        self._call("pthread_cond_init", "condition", None)
        worker = _Worker(compiler.kernel(_worker_text))
        self.workers: list[threading.Thread] = []
        for k in range(1, threads):
            name = f"gpugrad-worker-{k}"
            thread = threading.Thread(target=_work, args=(worker, self), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self.workers.append(thread)

    def _at(self, word: str) -> int:
        return self.address + 8 * _WORDS[word]

    def _word(self, word: str) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self._at(word))

    def _call(self, function: str, word: str, *rest) -> None:
        result = getattr(self._library, function)(ctypes.c_void_p(self._at(word)), *rest)
        if result:
            raise OSError(result, f"{function}: {os.strerror(result)}")

    def close(self, timeout: float = 0.0) -> None:
        """Let the workers go, and wait for them up to ``timeout`` seconds. A job in progress ends
        without them."""
        self._call("pthread_mutex_lock", "mutex")
        self._word("quit").value = 1
        self._call("pthread_cond_broadcast", "condition")
        self._call("pthread_mutex_unlock", "mutex")
        if timeout:
            for thread in self.workers:
                thread.join(timeout)


def _work(worker, pool: Pool) -> None:
    """What a thread of a pool does; it holds the memory of the pool as long as it lives."""
    worker(pool.address)


# The pool of this process: one entry at most, empty until asked for.
_pools: list[Pool] = []
_changing = threading.Lock()


def current() -> Pool | None:
    """The pool of this process, with as many threads as ``gpugrad.set_num_threads`` says; None for
    one thread, or where there can be no pool.

    Whoever uses its address holds the pool meanwhile: another thread may replace it.
    """
    threads = backend.settings.num_threads or backend.get_num_threads()
    if threads == 1:
        return None
    if _pools and (pool := _pools[0]).threads == threads:
        return pool
    return _replace(threads)


def _replace(threads: int) -> Pool | None:
    compiler = machine()
    if compiler is None or os.name != "posix":
        return None
    with _changing:
        if not _pools or _pools[0].threads != threads:
            pool = Pool(compiler, threads)
            _close()
            _pools.append(pool)
        return _pools[0]


def _close(timeout: float = 0.0) -> None:
    while _pools:
        _pools.pop().close(timeout)


def _forget() -> None:
    """In the child of a fork, which has none of the threads."""
    global _changing
    _changing = threading.Lock()
    _pools.clear()


# A worker must not be in native code any more when the interpreter frees it.
atexit.register(_close, 1.0)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
