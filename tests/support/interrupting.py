"""Interrupts by a timer's signal, as Ctrl-C makes them, and never where Python drops an exception."""

import _weakrefset
import signal
import weakref


def is_dropped(frame):
    """Whether an exception raised here reaches no caller: those of a weak reference's callback and of a finalizer are only told."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename in (weakref.__file__, _weakrefset.__file__):
            return True
        frame = frame.f_back
    return False


def on_timer(interrupted=None):
    """From now on the timer raises KeyboardInterrupt; `interrupted`, if given, is called with the frame just before."""

    def interrupt(_, frame):
        if is_dropped(frame):
            signal.setitimer(signal.ITIMER_REAL, 1e-5)
            return
        if interrupted is not None:
            interrupted(frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
