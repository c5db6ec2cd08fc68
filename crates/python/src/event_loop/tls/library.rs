//! The OpenSSL that the interpreter's own `ssl` module works with, found in the process and checked before it is used.
//!
//! Nothing is linked and nothing is loaded: the functions are looked up in `_ssl` and what it depends on. Whose `SSL` a
//! connection has is learnt by OpenSSL's own means (a callback that it calls for each `SSL` it makes), and believed only if the
//! connection's `_ssl._SSLSocket` holds that very address and OpenSSL names that very object as the owner. Whatever is not as
//! expected, the caller goes through `ssl.SSLObject` instead. The README beside this file has the argument.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::ptr;
use std::sync::OnceLock;

use pyo3::prelude::*;

use super::wire::Wire;

/// OpenSSL's structures, known by address only.
pub type Ssl = *mut c_void;
pub type Bio = *mut c_void;
type BioMethod = *mut c_void;

type ExNew = unsafe extern "C" fn(Ssl, *mut c_void, *mut c_void, c_int, c_long, *mut c_void);

unsafe extern "C" {
    fn dlopen(path: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_LAZY: c_int = 1;
const RTLD_NOLOAD: c_int = 4;
/// `RTLD_DEFAULT` of glibc and musl.
const EVERYWHERE: *mut c_void = ptr::null_mut();

/// `CRYPTO_EX_INDEX_SSL` of every OpenSSL so far.
const EX_INDEX_SSL: c_int = 0;
/// Where `_ssl` notes the owner of an `SSL` (`SSL_set_app_data`).
const APP_DATA: c_int = 0;
/// `BIO_TYPE_SOURCE_SINK`
const SOURCE_SINK: c_int = 0x0400;

macro_rules! library {
    ($($(#[$doc:meta])* $field:ident: $symbol:literal fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions that are used, and our kind of BIO.
        pub struct Library {
            $($(#[$doc])* $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            method: BioMethod,
        }

        impl Library {
            /// Looks every function up; `None` if one is missing.
            fn look_up(handle: *mut c_void) -> Option<Self> {
                Some(Self {
                    $($field: {
                        let name = concat!($symbol, "\0");
                        // SAFETY: a handle of a library that stays loaded, and a name that ends with a zero byte.
                        let address = unsafe { dlsym(handle, name.as_ptr().cast()) };
                        if address.is_null() {
                            return None;
                        }
                        // SAFETY: OpenSSL's function of that name has this signature in 1.1.1 and in every 3.x.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(address)
                        }
                    },)*
                    method: ptr::null_mut(),
                })
            }
        }
    };
}

library! {
    version: "OpenSSL_version_num" fn() -> c_ulong;
    ex_new_index: "CRYPTO_get_ex_new_index" fn(c_int, c_long, *mut c_void, Option<ExNew>, *mut c_void, *mut c_void) -> c_int;
    ssl_ex_data: "SSL_get_ex_data" fn(Ssl, c_int) -> *mut c_void;
    ssl_read: "SSL_read" fn(Ssl, *mut c_void, c_int) -> c_int;
    ssl_write: "SSL_write" fn(Ssl, *const c_void, c_int) -> c_int;
    ssl_pending: "SSL_pending" fn(Ssl) -> c_int;
    ssl_has_pending: "SSL_has_pending" fn(Ssl) -> c_int;
    ssl_set_bio: "SSL_set_bio" fn(Ssl, Bio, Bio);
    bio_new: "BIO_new" fn(BioMethod) -> Bio;
    bio_set_data: "BIO_set_data" fn(Bio, *mut c_void);
    bio_data: "BIO_get_data" fn(Bio) -> *mut c_void;
    bio_set_init: "BIO_set_init" fn(Bio, c_int);
    bio_set_flags: "BIO_set_flags" fn(Bio, c_int);
    bio_clear_flags: "BIO_clear_flags" fn(Bio, c_int);
    method_new: "BIO_meth_new" fn(c_int, *const c_char) -> BioMethod;
    method_set_read: "BIO_meth_set_read" fn(BioMethod, unsafe extern "C" fn(Bio, *mut u8, c_int) -> c_int) -> c_int;
    method_set_write: "BIO_meth_set_write" fn(BioMethod, unsafe extern "C" fn(Bio, *const u8, c_int) -> c_int) -> c_int;
    method_set_ctrl: "BIO_meth_set_ctrl" fn(BioMethod, unsafe extern "C" fn(Bio, c_int, c_long, *mut c_void) -> c_long) -> c_int;
    method_set_destroy: "BIO_meth_set_destroy" fn(BioMethod, unsafe extern "C" fn(Bio) -> c_int) -> c_int;
}

// SAFETY: function pointers, and a method table that nobody changes once it is made.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();

thread_local! {
    /// The `SSL` that this thread has made last. Only compared, never followed, until its owner is known.
    static LATEST: Cell<Ssl> = const { Cell::new(ptr::null_mut()) };
}

/// OpenSSL calls this for each new `SSL`.
unsafe extern "C" fn note_new(
    ssl: Ssl,
    _: *mut c_void,
    _: *mut c_void,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) {
    let _ = LATEST.try_with(|latest| latest.set(ssl));
}

impl Library {
    /// The library, if it can be used. The first call looks for it; it has to come before the `SSL`s that are to be adopted.
    pub fn get(py: Python<'_>) -> Option<&'static Self> {
        if let Some(library) = LIBRARY.get() {
            return library.as_ref();
        }
        let found = Self::find(py).unwrap_or_default();
        LIBRARY
            .get_or_init(|| found.and_then(Self::prepare))
            .as_ref()
    }

    /// The functions that `_ssl` uses, if it is an OpenSSL that we know.
    fn find(py: Python<'_>) -> PyResult<Option<Self>> {
        let module = py.import("_ssl")?;
        let name: String = module.getattr("OPENSSL_VERSION")?.extract()?;
        let number: c_ulong = module.getattr("OPENSSL_VERSION_NUMBER")?.extract()?;
        let known = number & 0xffff_f000 == 0x1010_1000 || number >> 28 == 3;
        if !known || !name.starts_with("OpenSSL ") {
            return Ok(None);
        }
        let handle = match module.getattr("__file__") {
            Ok(file) => {
                let Ok(path) = CString::new(file.extract::<String>()?) else {
                    return Ok(None);
                };
                // SAFETY: a path that ends with a zero byte; nothing is loaded that is not loaded already.
                let handle = unsafe { dlopen(path.as_ptr(), RTLD_LAZY | RTLD_NOLOAD) };
                if handle.is_null() {
                    return Ok(None);
                }
                handle
            }
            // A part of the interpreter itself.
            Err(_) => EVERYWHERE,
        };
        let library = Self::look_up(handle);
        // SAFETY: the function takes nothing and gives the version that was compiled into the library.
        Ok(library.filter(|library| unsafe { (library.version)() } == number))
    }

    /// Has OpenSSL tell of new `SSL`s, and makes our kind of BIO. Both stay for the life of the process.
    fn prepare(mut self) -> Option<Self> {
        // SAFETY: the callback has OpenSSL's signature, touches nothing but a thread-local, and this library is never unloaded.
        let index = unsafe {
            (self.ex_new_index)(
                EX_INDEX_SSL,
                0,
                ptr::null_mut(),
                Some(note_new),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        // SAFETY: a name that ends with a zero byte, which OpenSSL copies.
        let method = unsafe { (self.method_new)(SOURCE_SINK, c"plait".as_ptr()) };
        if index < 0 || method.is_null() {
            return None;
        }
        // SAFETY: a method table of our own, and functions with OpenSSL's signatures.
        let set = unsafe {
            (self.method_set_read)(method, bio_read) == 1
                && (self.method_set_write)(method, bio_write) == 1
                && (self.method_set_ctrl)(method, bio_control) == 1
                && (self.method_set_destroy)(method, bio_destroy) == 1
        };
        self.method = method;
        set.then_some(self)
    }

    /// The `SSL` of an `ssl.SSLObject` that this thread has just made, from now on reading from and writing to `wire`.
    ///
    /// `None` if it cannot be known for certain, and then nothing has been changed.
    pub fn adopt(
        &'static self,
        object: &Bound<'_, PyAny>,
        wire: &std::sync::Arc<Wire>,
    ) -> Option<Connection> {
        let py = object.py();
        let socket = object.getattr("_sslobj").ok()?;
        let class = py.import("_ssl").ok()?.getattr("_SSLSocket").ok()?;
        if !socket.get_type().is(&class) {
            return None;
        }
        let ssl = LATEST.get();
        let size: usize = class.getattr("__basicsize__").ok()?.extract().ok()?;
        if ssl.is_null() || !holds(&socket, size, ssl) {
            return None;
        }
        // SAFETY: the object holds this address, and it is that of an `SSL` made a moment ago: it is the object's own, and
        // lives as long as the object.
        let owner = unsafe { (self.ssl_ex_data)(ssl, APP_DATA) };
        if owner != socket.as_ptr().cast() {
            return None;
        }
        // SAFETY: our own method table.
        let bio = unsafe { (self.bio_new)(self.method) };
        if bio.is_null() {
            return None;
        }
        let data = std::sync::Arc::into_raw(wire.clone());
        // SAFETY: a BIO of our own, which from here on owns one count of `wire` and gives it back in `bio_destroy`; the `SSL` is
        // alive (above), has not begun its handshake, and takes the one count of the BIO that there is, for both directions.
        unsafe {
            (self.bio_set_data)(bio, data.cast_mut().cast());
            (self.bio_set_init)(bio, 1);
            (self.ssl_set_bio)(ssl, bio, bio);
        }
        Some(Connection {
            library: self,
            ssl,
            owner: socket.unbind(),
        })
    }
}

/// Whether an address is among the words of a live object of `size` bytes.
fn holds(object: &Bound<'_, PyAny>, size: usize, address: *mut c_void) -> bool {
    let words = size / size_of::<*mut c_void>();
    let start = object.as_ptr().cast::<*mut c_void>();
    (0..words).any(|index| {
        // SAFETY: inside the object, which is this large, and aligned as it is.
        unsafe { start.add(index).read() == address }
    })
}

/// What a read or a write by OpenSSL has come to.
pub enum Did {
    /// So many bytes, at least one.
    Bytes(usize),
    /// More has to come in first.
    Starved,
    /// Something else: the end, or an error. `ssl.SSLObject` says which, when it is asked for the same.
    Other,
}

/// The `SSL` of one connection. Only one thread at a time may use it.
pub struct Connection {
    library: &'static Library,
    ssl: Ssl,
    /// The `_ssl._SSLSocket` that the `SSL` belongs to.
    owner: Py<PyAny>,
}

// SAFETY: an `SSL` may be used from any thread, one at a time: the owner of this value sees to that, and whoever else has the
// `_SSLSocket` is kept off by the interpreter's lock or by the object's critical section.
unsafe impl Send for Connection {}

impl Connection {
    /// The Python object that it belongs to.
    pub fn owner(&self) -> &Py<PyAny> {
        &self.owner
    }

    /// Bytes that were taken from the wire and have not been given out: at most so many.
    pub fn held(&self) -> usize {
        // SAFETY: alive, because its owner is.
        unsafe {
            if (self.library.ssl_has_pending)(self.ssl) == 0 {
                0
            } else {
                usize::try_from((self.library.ssl_pending)(self.ssl)).unwrap_or(0) + LARGEST_RECORD
            }
        }
    }

    /// Decrypts into memory that need not hold anything yet.
    ///
    /// # Safety
    /// `room` bytes at `into` may be written, by nobody else meanwhile.
    pub unsafe fn read(&self, py: Python<'_>, wire: &Wire, into: *mut u8, room: usize) -> Did {
        wire.begin();
        let room = c_int::try_from(room).unwrap_or(c_int::MAX);
        // SAFETY: alive, because its owner is; the memory is the caller's promise.
        let done = self.alone(py, || unsafe {
            (self.library.ssl_read)(self.ssl, into.cast(), room)
        });
        Self::judge(wire, done)
    }

    /// Encrypts. All of `data` is taken, or nothing; what was not must come again as it is.
    pub fn write(&self, py: Python<'_>, wire: &Wire, data: &[u8]) -> Did {
        wire.begin();
        let length = c_int::try_from(data.len()).unwrap_or(c_int::MAX);
        // SAFETY: alive, because its owner is; `length` bytes of `data` are there.
        let done = self.alone(py, || unsafe {
            (self.library.ssl_write)(self.ssl, data.as_ptr().cast(), length)
        });
        Self::judge(wire, done)
    }

    /// Keeps methods of the Python object off meanwhile, on a build that has no other lock.
    fn alone<R>(&self, py: Python<'_>, run: impl FnOnce() -> R) -> R {
        pyo3::sync::critical_section::with_critical_section(self.owner.bind(py), run)
    }

    fn judge(wire: &Wire, done: c_int) -> Did {
        match usize::try_from(done) {
            Ok(bytes) if bytes > 0 => Did::Bytes(bytes),
            _ if wire.is_starved() => Did::Starved,
            _ => Did::Other,
        }
    }
}

/// A record's bytes with all that TLS adds, rounded up.
pub const LARGEST_RECORD: usize = 17 * 1024;

const BIO_FLAGS_READ: c_int = 1;
const BIO_FLAGS_RWS: c_int = 7;
const BIO_FLAGS_SHOULD_RETRY: c_int = 8;
const BIO_CTRL_PENDING: c_int = 10;
const BIO_CTRL_FLUSH: c_int = 11;
const BIO_CTRL_DUP: c_int = 12;
const BIO_CTRL_WPENDING: c_int = 13;

/// What a BIO of ours works on.
///
/// # Safety
/// `bio` is a BIO of ours. The reference must not outlive the call that OpenSSL is making.
unsafe fn wire_of<'a>(bio: Bio) -> Option<(&'static Library, &'a Wire)> {
    let library = LIBRARY.get()?.as_ref()?;
    // SAFETY: the data of a BIO of ours is null or a count of a `Wire` that it owns.
    let wire = unsafe { (library.bio_data)(bio).cast::<Wire>().as_ref() }?;
    Some((library, wire))
}

unsafe extern "C" fn bio_read(bio: Bio, into: *mut u8, room: c_int) -> c_int {
    // SAFETY: OpenSSL calls this with a BIO of ours.
    let Some((library, wire)) = (unsafe { wire_of(bio) }) else {
        return -1;
    };
    let Ok(room) = usize::try_from(room) else {
        return -1;
    };
    // SAFETY: as above.
    unsafe { (library.bio_clear_flags)(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY) };
    // SAFETY: OpenSSL gives `room` bytes of its own memory.
    let taken = unsafe { wire.take_into(into, room) };
    if taken == 0 && room != 0 {
        // SAFETY: as above.
        unsafe { (library.bio_set_flags)(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY) };
        return -1;
    }
    c_int::try_from(taken).unwrap_or(-1)
}

unsafe extern "C" fn bio_write(bio: Bio, from: *const u8, length: c_int) -> c_int {
    // SAFETY: OpenSSL calls this with a BIO of ours.
    let Some((library, wire)) = (unsafe { wire_of(bio) }) else {
        return -1;
    };
    // SAFETY: as above.
    unsafe { (library.bio_clear_flags)(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY) };
    if let Ok(bytes @ 1..) = usize::try_from(length) {
        // SAFETY: OpenSSL gives `length` bytes.
        wire.put(unsafe { std::slice::from_raw_parts(from, bytes) });
    }
    length
}

unsafe extern "C" fn bio_control(bio: Bio, command: c_int, _: c_long, _: *mut c_void) -> c_long {
    // SAFETY: OpenSSL calls this with a BIO of ours.
    let Some((_, wire)) = (unsafe { wire_of(bio) }) else {
        return 0;
    };
    let count = |bytes: usize| c_long::try_from(bytes).unwrap_or(c_long::MAX);
    match command {
        BIO_CTRL_PENDING => count(wire.incoming()),
        BIO_CTRL_WPENDING => count(wire.outgoing()),
        BIO_CTRL_FLUSH | BIO_CTRL_DUP => 1,
        _ => 0,
    }
}

unsafe extern "C" fn bio_destroy(bio: Bio) -> c_int {
    let Some(library) = LIBRARY.get().and_then(Option::as_ref) else {
        return 0;
    };
    // SAFETY: the data of a BIO of ours is null or a count of a `Wire` that it owns and gives back here, once.
    unsafe {
        let wire = (library.bio_data)(bio).cast::<Wire>();
        if !wire.is_null() {
            (library.bio_set_data)(bio, ptr::null_mut());
            drop(std::sync::Arc::from_raw(wire.cast_const()));
        }
    }
    1
}
