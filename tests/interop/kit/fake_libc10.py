"""A C++ runtime that is played: exceptions are made and thrown as PyTorch's are, and only noted down.

`__cxa_throw` does not return; this one does, with nothing, and whoever called for memory looks whether an
exception is on its way in the thread.
"""

import ctypes
import threading

WORD, SIZE = ctypes.c_void_p, ctypes.c_size_t


class Place(ctypes.Structure):
    _fields_ = (("function", ctypes.c_char_p), ("file", ctypes.c_char_p), ("line", ctypes.c_uint32))


class Type(ctypes.Structure):
    _fields_ = (("table", WORD), ("name", ctypes.c_char_p), ("below", WORD))


class FakeLibc10:
    def __init__(self):
        self.thrown = {}  # thread -> (name of the class, message)
        self.alive = {}  # address of an exception -> [its memory, message]
        self._texts = {}
        text = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
        self._functions = (WORD * 3)(0xD00, 0, 0)  # of an exception's class; the first is its destructor
        self._names = {
            "__cxa_throw": ctypes.CFUNCTYPE(WORD, WORD, WORD, WORD)(self._throw),
            "__cxa_allocate_exception": ctypes.CFUNCTYPE(WORD, SIZE)(self._allocate),
            f"_Z{text[:-1]}C1Ev": ctypes.CFUNCTYPE(None, WORD)(self._begin),
            f"_Z{text[:-1]}6appendEPKcm": ctypes.CFUNCTYPE(None, WORD, WORD, SIZE)(self._append),
            f"_Z{text[:-1]}D1Ev": ctypes.CFUNCTYPE(None, WORD)(self._end),
            f"_ZN3c105ErrorC1ENS_14SourceLocationE{text}": ctypes.CFUNCTYPE(None, WORD, Place, WORD)(
                self._construct
            ),
            "_ZTIN3c105ErrorE": (Type * 1)(Type(0x51, b"N3c105ErrorE", None)),
            "_ZTVN10__cxxabiv120__si_class_type_infoE": ctypes.create_string_buffer(24),
        }

    def __getitem__(self, name):
        try:
            return self._names[name]
        except KeyError:
            raise AttributeError(f"undefined symbol: {name}") from None

    def take(self):
        """Return the class and the message of what was thrown in this thread, once; None for nothing."""
        return self.thrown.pop(threading.get_ident(), None)

    def _allocate(self, size):
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        self.alive[address] = [memory, None]
        return address

    def _begin(self, string):
        assert string not in self._texts
        self._texts[string] = b""

    def _append(self, string, text, size):
        self._texts[string] += ctypes.string_at(text, size)

    def _end(self, string):
        del self._texts[string]

    def _construct(self, error, place, string):
        assert place.function == b"malloc"
        ctypes.c_uint64.from_address(error).value = ctypes.addressof(self._functions)
        self.alive[error][1] = self._texts[string].decode()

    def _throw(self, error, kind, destructor):
        assert destructor == 0xD00
        own = self._names["_ZTIN3c105ErrorE"]
        derived = self._names["_ZTVN10__cxxabiv120__si_class_type_infoE"]
        thrown = Type.from_address(kind)
        if kind != ctypes.addressof(own):
            assert (thrown.table, thrown.below) == (ctypes.addressof(derived) + 16, ctypes.addressof(own))
        name = {b"N3c105ErrorE": "Error", b"N3c1016OutOfMemoryErrorE": "OutOfMemoryError"}[thrown.name]
        self.thrown[threading.get_ident()] = name, self.alive.pop(error)[1]
