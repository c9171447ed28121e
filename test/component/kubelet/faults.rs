use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::watch;

use super::within;

/// What goes wrong on a node. Nothing does unless a test says so.
#[derive(Default)]
pub struct Faults {
    /// Between the choice of devices and the Allocate call.
    pub allocate: Gate,
    /// Before a ListAndWatch list that has arrived is taken in.
    pub updates: Gate,
    /// Before an answer of List that is worked out already is sent: it is old when it arrives.
    pub list: Gate,
    /// The same for GetAllocatableResources.
    pub allocatable: Gate,
    exhausted: AtomicU32,
    /// List shows pods that have ended until they are removed, as before Kubernetes 1.34.
    pub lists_ended_pods: AtomicBool,
    /// The next start makes no PodResources socket.
    pub no_pod_resources: AtomicBool,
}

impl Faults {
    /// The next `requests` to PodResources are refused as beyond the rate.
    pub fn exhaust(&self, requests: u32) {
        self.exhausted.store(requests, Ordering::SeqCst);
    }

    pub fn is_exhausted(&self) -> bool {
        self.exhausted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

#[derive(Clone, Copy, Default)]
struct State {
    held: bool,
    waiting: usize,
}

/// A place where something can be held up until a test releases it; not released, it hangs.
pub struct Gate(watch::Sender<State>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(State::default()))
    }
}

impl Gate {
    pub fn hold(&self) {
        self.0.send_modify(|state| state.held = true);
    }

    pub fn release(&self) {
        self.0.send_modify(|state| state.held = false);
    }

    /// Waits until as many are held up here.
    pub async fn holds(&self, count: usize) {
        let mut state = self.0.subscribe();
        within("to be held at the gate", state.wait_for(|state| state.waiting >= count)).await.unwrap();
    }

    pub async fn pass(&self) {
        let _waiting = Waiting::at(self);
        self.0.subscribe().wait_for(|state| !state.held).await.unwrap();
    }
}

/// Counts for as long as the one who waits has not given up.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn at(gate: &'a Gate) -> Self {
        gate.0.send_modify(|state| state.waiting += 1);
        Self(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.waiting -= 1);
    }
}
