//! The C functions, with all unsafe code of the crate.
//!
//! Signatures and meanings are those of nvml.h. Each function relies on the header's contract: a pointer is NULL or
//! points to what its type says, for the duration of the call.
#![allow(unsafe_code, reason = "a C ABI is made of raw pointers")]
#![allow(non_snake_case, reason = "the names are NVML's")]

mod compute_instance;
mod device;
mod event;
mod gpu_instance;
mod mig;
mod system;

use std::{
    ffi::{CStr, c_char, c_uint},
    panic::{AssertUnwindSafe, catch_unwind},
};

use nvml_wrapper_sys::bindings::nvmlReturn_t;

use crate::{
    code::{Code, NvmlResult},
    session::{self, Session},
};

/// Runs a call in the current session.
fn call(f: impl FnOnce(&Session) -> NvmlResult<()>) -> nvmlReturn_t {
    guard(|| f(&*session::current()?))
}

/// Turns a result into what C expects. A panic must not cross into C.
fn guard(f: impl FnOnce() -> NvmlResult<()>) -> nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => Code::UNKNOWN.0,
    }
}

/// An output argument, checked not to be NULL before the call has any effect.
struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is NULL or valid for a write of `T` as long as the result lives.
    unsafe fn new(pointer: *mut T) -> NvmlResult<Self> {
        if pointer.is_null() { Err(Code::INVALID_ARGUMENT) } else { Ok(Self(pointer)) }
    }

    fn put(self, value: T) {
        // SAFETY: not NULL, and so valid by the promise given to `new`. C callers need not have initialised it.
        unsafe { self.0.write(value) }
    }
}

/// An output array whose size the function's contract fixes; NULL asks only for the number of elements.
struct OutArray<T>(*mut T);

impl<T> OutArray<T> {
    /// # Safety
    /// `pointer` is NULL or valid for writes of as many elements as the contract promises, as long as the result lives.
    unsafe fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    fn is_query(&self) -> bool {
        self.0.is_null()
    }

    fn put(self, values: impl IntoIterator<Item = T>) {
        if self.is_query() {
            return;
        }
        for (n, value) in values.into_iter().enumerate() {
            // SAFETY: not NULL, and the caller of `new` promised room for every element.
            unsafe { self.0.add(n).write(value) }
        }
    }
}

/// An output string of limited length.
struct OutText {
    buffer: *mut c_char,
    length: usize,
}

impl OutText {
    /// # Safety
    /// `buffer` is NULL or valid for writes of `length` bytes as long as the result lives.
    unsafe fn new(buffer: *mut c_char, length: c_uint) -> NvmlResult<Self> {
        let length = length as usize;
        if buffer.is_null() { Err(Code::INVALID_ARGUMENT) } else { Ok(Self { buffer, length }) }
    }

    fn put(self, text: &str) -> NvmlResult<()> {
        if text.len() >= self.length {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        // SAFETY: the text and its terminator fit into the length that the caller of `new` vouched for.
        unsafe {
            self.buffer.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
            self.buffer.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// Reads an input argument.
///
/// # Safety
/// `pointer` is NULL or points to a `T`.
unsafe fn input<T: Copy>(pointer: *const T) -> NvmlResult<T> {
    if pointer.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL, and so valid by the caller's promise.
    Ok(unsafe { pointer.read() })
}

/// Reads an input string.
///
/// # Safety
/// `pointer` is NULL or points to a string that ends with a zero byte.
unsafe fn input_text(pointer: *const c_char) -> NvmlResult<String> {
    if pointer.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL, and so a C string by the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(str::to_owned).map_err(|_| Code::INVALID_ARGUMENT)
}

/// Reads the `version` at the head of a versioned structure and finds which of `accepted` it is.
///
/// # Safety
/// `pointer` is NULL or points to a structure that starts with its version.
unsafe fn version<T>(pointer: *const T, accepted: &[Version]) -> NvmlResult<Version> {
    // SAFETY: the structure starts with a c_uint by the caller's promise.
    let given = unsafe { input(pointer.cast::<c_uint>()) }?;
    accepted.iter().copied().find(|v| v.tag() == given).ok_or(Code::ARGUMENT_VERSION_MISMATCH)
}

/// A version of a structure: `NVML_STRUCT_VERSION(type, number)`.
#[derive(Clone, Copy)]
struct Version {
    number: u32,
    size: usize,
}

impl Version {
    const fn of<T>(number: u32) -> Self {
        Self { number, size: size_of::<T>() }
    }

    fn tag(self) -> c_uint {
        // The header's own formula; no structure is near 16 MiB.
        u32::try_from(self.size).unwrap_or(0) | self.number << 24
    }
}

/// A fixed-size C string field; longer text is cut.
fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text.bytes()).take(N - 1) {
        *to = from.cast_signed();
    }
    field
}

/// A number of elements as C counts them.
fn count(length: usize) -> c_uint {
    c_uint::try_from(length).unwrap_or(c_uint::MAX)
}
