//! Opaque handles: pointers that clients hold and that only this table can read.
//!
//! A handle stands for a place (this GPU instance id on that GPU) and not for one life of it, stays valid as long as
//! the library is loaded, and is never dereferenced, so a wild pointer is an argument error and not a crash.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::code::{Code, NvmlResult};

/// What a handle stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Handle {
    Gpu(u32),
    GpuInstance { gpu: u32, gi: u32 },
    ComputeInstance { gpu: u32, gi: u32, ci: u32 },
    MigDevice { gpu: u32, gi: u32, ci: u32 },
    EventSet(u64),
}

#[derive(Default)]
struct Table {
    by_handle: HashMap<Handle, usize>,
    by_address: HashMap<usize, Handle>,
    event_sets: u64,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

fn table<T>(f: impl FnOnce(&mut Table) -> T) -> T {
    f(&mut TABLE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The pointer for a handle.
pub(crate) fn intern<T>(handle: Handle) -> *mut T {
    table(|t| t.intern(handle)) as *mut T
}

/// What a client's pointer stands for.
pub(crate) fn resolve<T>(pointer: *mut T) -> NvmlResult<Handle> {
    table(|t| t.by_address.get(&(pointer as usize)).copied()).ok_or(Code::INVALID_ARGUMENT)
}

/// The number of a new event set, unique in the process.
pub(crate) fn new_event_set() -> u64 {
    table(|t| {
        t.event_sets += 1;
        t.event_sets
    })
}

/// Forgets an event set.
pub(crate) fn free_event_set<T>(pointer: *mut T) -> NvmlResult<u64> {
    table(|t| {
        let address = pointer as usize;
        match t.by_address.get(&address) {
            Some(&handle @ Handle::EventSet(set)) => {
                t.by_handle.remove(&handle);
                t.by_address.remove(&address);
                Ok(set)
            }
            _ => Err(Code::INVALID_ARGUMENT),
        }
    })
}

impl Table {
    fn intern(&mut self, handle: Handle) -> usize {
        if let Some(address) = self.by_handle.get(&handle) {
            return *address;
        }
        // Leaked so that no other allocation of the process can ever have the address.
        let address = std::ptr::from_ref(Box::leak(Box::new(handle))) as usize;
        self.by_handle.insert(handle, address);
        self.by_address.insert(address, handle);
        address
    }
}
