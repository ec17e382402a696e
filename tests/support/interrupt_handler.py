"""A handler of SIGALRM that raises KeyboardInterrupt, as Ctrl-C does, and never where Python drops an exception."""

import _weakrefset
import signal
import weakref


def is_dropped(frame):
    """Whether an exception raised here reaches no caller: Python only prints those of a weak reference's callback and of a finalizer."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename in (weakref.__file__, _weakrefset.__file__):
            return True
        frame = frame.f_back
    return False


def install_interrupt_handler(interrupted=None):
    """Let SIGALRM raise KeyboardInterrupt; the caller sets the timer. `interrupted`, if given, is called with the frame just before."""

    def interrupt(_, frame):
        if is_dropped(frame):
            # again a little later, outside the callback
            signal.setitimer(signal.ITIMER_REAL, 1e-5)
            return
        if interrupted is not None:
            interrupted(frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
