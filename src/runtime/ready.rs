//! Whether the process is ready, and what it waits for if not.

use std::sync::{Arc, Mutex, PoisonError};

/// A flag that `/readyz` shows. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    ready: bool,
    waiting_for: Vec<&'static str>,
    role: Option<&'static str>,
}

impl Ready {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the process is ready.
    pub fn set(&self) {
        let mut state = self.state();
        state.ready = true;
        state.waiting_for.clear();
    }

    /// Notes that the process is not ready, or no longer.
    pub fn unset(&self) {
        self.state().ready = false;
    }

    /// Notes what the process waits for.
    pub fn waiting_for(&self, what: Vec<&'static str>) {
        self.state().waiting_for = what;
    }

    /// Notes what the process is among its like.
    pub fn set_role(&self, role: &'static str) {
        self.state().role = Some(role);
    }

    /// What the process is among its like; `None` where it has none.
    pub fn role(&self) -> Option<&'static str> {
        self.state().role
    }

    /// Whether the process is ready.
    pub fn is_ready(&self) -> bool {
        self.state().ready
    }

    /// What the process waits for.
    pub fn missing(&self) -> Vec<&'static str> {
        self.state().waiting_for.clone()
    }
}
