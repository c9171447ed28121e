//! The controller's metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use slicegate_core::plan::Cause;
use slicegate_core::profile::ProfileName;
use slicegate_core::quota::Standing;
use slicegate_core::workload::CheckState;

use super::chargeback::Chargeback;
use super::reports::Gauges;
use super::writer::{Outcome, state_name};

/// The controller's metrics.
pub struct Metrics {
    transitions: IntCounterVec,
    reserve_to_ready: Histogram,
    writes: IntCounterVec,
    taken: IntGaugeVec,
    blocked: IntGaugeVec,
    idle_units: IntGaugeVec,
    claimed: IntCounterVec,
    held_units: IntGauge,
    quotas: GaugeVec,
    leader: IntGauge,
    pub(super) plan_seconds: Histogram,
    pub(super) chargeback: Chargeback,
    pub(super) reports: Gauges,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let transitions = IntCounterVec::new(
            Opts::new(
                "slicegate_check_transitions_total",
                "Changes of admission check states, by old and new state",
            ),
            &["from", "state"],
        )?;
        let reserve_to_ready = reserve_to_ready()?;
        let writes = IntCounterVec::new(
            Opts::new(
                "slicegate_writes_total",
                "Writes to the API server, by what is written and how it ended",
            ),
            &["what", "result"],
        )?;
        let taken = IntGaugeVec::new(
            Opts::new(
                "slicegate_slices_taken",
                "Slices held by pods that came past the queue, or by processes without a pod, by profile",
            ),
            &["profile"],
        )?;
        let blocked = IntGaugeVec::new(
            Opts::new(
                "slicegate_blocked_requests",
                "Workloads with quota that find no place, by cause: capacity and fragmentation are about room for slices (slices: \
                 which of the two cannot be said), resources about cpu, memory or pods, nodes about nodes out of service, profile \
                 and size about what no node offers or the cluster could never hold, quota about a ResourceQuota",
            ),
            &["cause"],
        )?;
        for cause in Cause::ALL {
            blocked.with_label_values(&[cause.label()]).set(0);
        }
        let idle_units = IntGaugeVec::new(
            Opts::new(
                "slicegate_idle_units",
                "Placement units of slices that nobody has claimed and that are kept for the next request, by profile",
            ),
            &["profile"],
        )?;
        let claimed = IntCounterVec::new(
            Opts::new(
                "slicegate_slices_claimed_total",
                "Slices claimed, by whether they stood idle (reused) or had to be made (made)",
            ),
            &["result"],
        )?;
        let held_units = IntGauge::new(
            "slicegate_held_units",
            "Placement units of GPUs that are kept for workloads that have waited long",
        )?;
        let quotas = GaugeVec::new(
            Opts::new(
                "slicegate_resource_quota",
                "ResourceQuotas of namespaces that submit workloads to Slicegate, by what is allowed (hard), what pods that there \
                 are have of it (used), and what pods will have that do not exist yet, of workloads that are let in (in_flight): in \
                 cores, bytes or devices",
            ),
            &["namespace", "resource_quota", "resource", "figure"],
        )?;
        let leader = IntGauge::new(
            "slicegate_leader",
            "Whether this replica decides (1) or stands by for one that does (0)",
        )?;
        let plan_seconds = Histogram::with_opts(
            HistogramOpts::new("slicegate_plan_seconds", "Time to decide, over everything that is known")
                .buckets(prometheus::exponential_buckets(0.000_05, 3.0, 10)?),
        )?;
        let chargeback = Chargeback::new()?;
        registry.register(Box::new(chargeback.clone()))?;
        registry.register(Box::new(transitions.clone()))?;
        registry.register(Box::new(reserve_to_ready.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(taken.clone()))?;
        registry.register(Box::new(blocked.clone()))?;
        registry.register(Box::new(idle_units.clone()))?;
        registry.register(Box::new(claimed.clone()))?;
        registry.register(Box::new(held_units.clone()))?;
        registry.register(Box::new(quotas.clone()))?;
        registry.register(Box::new(leader.clone()))?;
        registry.register(Box::new(plan_seconds.clone()))?;
        Ok(Self {
            transitions,
            reserve_to_ready,
            writes,
            taken,
            blocked,
            idle_units,
            claimed,
            held_units,
            quotas,
            leader,
            plan_seconds,
            chargeback,
            reports: Gauges::new(registry)?,
        })
    }

    pub(super) fn transition(&self, from: CheckState, to: CheckState) {
        self.transitions.with_label_values(&[state_name(from), state_name(to)]).inc();
    }

    pub(super) fn reserve_to_ready(&self, elapsed: Duration) {
        self.reserve_to_ready.observe(elapsed.as_secs_f64() * 1000.0);
    }

    /// Sets the gauge of taken slices.
    pub(super) fn taken(&self, taken: &BTreeMap<ProfileName, u32>, before: &BTreeMap<ProfileName, u32>) {
        set(&self.taken, taken, before);
    }

    /// Sets the gauge of units that are kept cut for the next request.
    pub(super) fn idle_units(&self, units: &BTreeMap<ProfileName, u32>, before: &BTreeMap<ProfileName, u32>) {
        set(&self.idle_units, units, before);
    }

    /// Counts slices that were claimed.
    pub(super) fn claimed(&self, (reused, made): (u32, u32)) {
        self.claimed.with_label_values(&["reused"]).inc_by(u64::from(reused));
        self.claimed.with_label_values(&["made"]).inc_by(u64::from(made));
    }

    pub(super) fn blocked(&self, blocked: &BTreeMap<Cause, u32>) {
        for cause in Cause::ALL {
            let count = blocked.get(&cause).copied().unwrap_or(0);
            self.blocked.with_label_values(&[cause.label()]).set(i64::from(count));
        }
    }

    pub(super) fn held_units(&self, units: u32) {
        self.held_units.set(units.into());
    }

    /// Sets the gauges of ResourceQuotas. Those of quotas that are gone go: nobody waits for them to change.
    pub(super) fn quotas(
        &self,
        now: &BTreeMap<Arc<str>, Vec<Standing>>,
        before: &BTreeMap<Arc<str>, Vec<Standing>>,
    ) {
        let names = |quotas: &BTreeMap<Arc<str>, Vec<Standing>>| -> BTreeSet<[Arc<str>; 3]> {
            let each = quotas.iter().flat_map(|(namespace, lines)| lines.iter().map(move |l| (namespace, l)));
            each.map(|(namespace, l)| [namespace.clone(), l.quota.clone(), l.resource.clone()]).collect()
        };
        for [namespace, quota, resource] in names(before).difference(&names(now)) {
            for figure in ["hard", "used", "in_flight"] {
                // It is an error only to remove what is not there.
                let _ = self.quotas.remove_label_values(&[namespace, quota, resource, figure]);
            }
        }
        for (namespace, lines) in now {
            for line in lines {
                for (figure, amount) in
                    [("hard", line.hard), ("used", line.used), ("in_flight", line.in_flight)]
                {
                    let gauge =
                        self.quotas.with_label_values(&[namespace, &line.quota, &line.resource, figure]);
                    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                    gauge.set(amount as f64 / 1000.0);
                }
            }
        }
    }

    pub(super) fn leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(super) fn write(&self, what: &str, outcome: Outcome) {
        self.writes.with_label_values(&[what, outcome.label()]).inc();
    }
}

/// Fine where an admission should be, coarse where it takes so long that somebody will look.
fn reserve_to_ready() -> prometheus::Result<Histogram> {
    let opts = HistogramOpts::new(
        "slicegate_reserve_to_ready_milliseconds",
        "Time from a quota reservation being seen to its check being Ready",
    );
    Histogram::with_opts(opts.buckets(vec![
        5.0, 10.0, 20.0, 40.0, 80.0, 150.0, 300.0, 600.0, 1200.0, 2500.0, 5000.0, 10_000.0, 30_000.0,
        120_000.0,
    ]))
}

/// Sets a gauge. A profile of which there is none any more stays, with 0: an absent series raises no alarm, but ends none either.
fn set(gauge: &IntGaugeVec, now: &BTreeMap<ProfileName, u32>, before: &BTreeMap<ProfileName, u32>) {
    for profile in before.keys().filter(|profile| !now.contains_key(profile)) {
        gauge.with_label_values(&[profile.as_str()]).set(0);
    }
    for (profile, count) in now {
        gauge.with_label_values(&[profile.as_str()]).set(i64::from(*count));
    }
}
