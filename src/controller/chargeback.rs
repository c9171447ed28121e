//! How long slices were reserved and used, and for whom: counters for Prometheus, which keeps their history.
//!
//! Only the leader counts, and no further than its lease reaches by its own clock: what happens after that is another's to count,
//! even while this process does not know yet, or slept. A new leader begins with nothing, as after any restart, which
//! `increase()` sees as a reset. What happens while nobody leads is charged to nobody.
//!
//! A series is first shown as 0, whatever has been counted by then, and as it is from the next answer on: `increase()` takes what
//! it sees first for granted, and would lose jobs shorter than the time between two scrapes.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, Opts};
use slicegate_core::meter::{Amount, Meter, Usage};
use slicegate_core::plan::Pod;

use super::index::Index;
use crate::runtime::lease::Hold;

/// Namespaces × LocalQueues × profiles that are kept apart. Each costs four series.
const MOST_ACCOUNTS: usize = 4096;
const LABELS: [&str; 4] = ["namespace", "local_queue", "profile", "state"];

/// The counters. Clones share them.
#[derive(Clone)]
pub struct Chargeback {
    count: Arc<Mutex<Count>>,
    seconds: CounterVec,
    mib_seconds: CounterVec,
}

/// What there is to show.
#[derive(Default)]
struct Count {
    /// The meter, and the lease that it counts under; `None` until this replica leads.
    meter: Option<(Meter, Hold)>,
    /// How many accounts have been shown before.
    shown: usize,
}

impl Count {
    fn advance(&mut self) {
        if let Some((meter, hold)) = &mut self.meter {
            meter.advance(hold.now());
        }
    }
}

impl Chargeback {
    /// Counters of nothing yet.
    pub fn new() -> prometheus::Result<Self> {
        let seconds = CounterVec::new(
            Opts::new(
                "slicegate_slice_seconds_total",
                "Time for which slices were reserved, in slice-seconds, by namespace, LocalQueue, profile, and whether a pod of \
                 those for whom they were reserved held them (used) or not (idle)",
            ),
            &LABELS,
        )?;
        let mib_seconds = CounterVec::new(
            Opts::new(
                "slicegate_slice_memory_mib_seconds_total",
                "The same, in MiB-seconds of the slices' memory as NVML reports it",
            ),
            &LABELS,
        )?;
        Ok(Self { count: Arc::default(), seconds, mib_seconds })
    }

    /// Counts what has been so far, and takes in what has changed since the last time.
    pub(super) fn follow(&self, hold: &Hold, index: &mut Index) {
        let touched = index.take_touched();
        let mut count = self.lock();
        let now = hold.now();
        let (meter, _) = count.meter.get_or_insert_with(|| (Meter::new(now, MOST_ACCOUNTS), hold.clone()));
        let world = index.snapshot();
        for name in &touched {
            let pods: Vec<&Pod> = index.bound_to(name).collect();
            meter.observe(now, name, world.nodes.get(name), &pods, &world.workloads);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, labels: [&str; 3], state: &str, amount: Amount) {
        let [namespace, queue, profile] = labels;
        let labels = [namespace, queue, profile, state];
        for (counters, amount) in [(&self.seconds, amount.slices), (&self.mib_seconds, amount.mib)] {
            let counter = counters.with_label_values(&labels);
            counter.reset();
            counter.inc_by(seconds(amount));
        }
    }
}

/// So many nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a sample of Prometheus is no more exact")]
fn seconds(nanoseconds: u128) -> f64 {
    nanoseconds as f64 / 1e9
}

impl Collector for Chargeback {
    fn desc(&self) -> Vec<&Desc> {
        [&self.seconds, &self.mib_seconds].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Until all of it is told, so that what is shown belongs together.
        let mut count = self.lock();
        count.advance();
        let shown = count.shown;
        if let Some((meter, _)) = &count.meter {
            let totals = meter.totals();
            let accounts = totals.len();
            for (i, (account, usage)) in totals.enumerate() {
                let usage = if i < shown { *usage } else { Usage::default() };
                let labels = [&*account.namespace, &*account.local_queue, account.profile.as_str()];
                self.set(labels, "used", usage.used);
                self.set(labels, "idle", usage.idle);
            }
            count.shown = accounts;
        }
        [&self.seconds, &self.mib_seconds].into_iter().flat_map(Collector::collect).collect()
    }
}
