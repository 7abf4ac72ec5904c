"""An interrupt at a chosen point, of those at which CPython looks for signals.

Those are where a function of Python begins, behind a call of C, and where a loop goes back. A trace function
that raises at any *line* also raises where no signal can, such as on the first line of a `finally`, and finds
faults there that cannot happen; this one does not, and misses none within a line.
"""

import dis
import sys

CALLS = {dis.opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX") if name in dis.opmap}
LOOPS = {code for name, code in dis.opmap.items() if name.startswith("JUMP_BACKWARD")}


class SignalPoints:
    """Counts the points that `run` passes in files whose names hold one of `parts`; raises at one of them.

    Attributes
    ----------
    count
        Points so far.
    place
        Where it raised: the file below the package, the line, and the function; None where it did not.
    """

    def __init__(self, parts, nth=None, error=None):
        self.parts, self.nth, self.error = parts, nth, error
        self.count = 0
        self.place = None
        self._instructions = []  # of the points
        self._before = {}  # by frame: the instruction that ran last, or None where it called Python

    def run(self, work):
        """Call `work` and return what it raised, or None."""
        raised = None
        sys.settrace(self._global)
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the caller
            raised = error
        finally:
            sys.settrace(None)
            self._before.clear()  # frames hold what ran in them
        return raised

    def _global(self, frame, event, _argument):
        if frame.f_back is not None:
            self._before[frame.f_back] = None  # its call is one of Python: the check is at the beginning here
        if not any(part in frame.f_code.co_filename for part in self.parts):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        self._point(frame)
        return self._local

    def _local(self, frame, event, _argument):
        if event == "opcode":
            before = self._before.get(frame)
            if before is not None:
                code = frame.f_code.co_code[before]
                if code in CALLS or (code in LOOPS and frame.f_lasti < before):
                    self._point(frame)
            self._before[frame] = frame.f_lasti
        elif event == "return":
            self._before.pop(frame, None)
        return self._local

    def first(self):
        """Return the points that were passed, each instruction once."""
        return sorted(
            {instruction: nth for nth, instruction in reversed(list(enumerate(self._instructions)))}.values()
        )

    def _point(self, frame):
        self.count += 1
        self._instructions.append((frame.f_code, frame.f_lasti))
        if self.nth is not None and self.count == self.nth + 1:
            sys.settrace(None)
            file = frame.f_code.co_filename.rpartition("/smartpool/")[2]
            self.place = file, frame.f_lineno, frame.f_code.co_name
            raise self.error
