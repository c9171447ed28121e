//! The reports as metrics: a series for each ClusterQueue, profile and kind of figure, and for each ClusterQueue and code.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{IntGaugeVec, Opts, Registry};
use slicegate_core::report::{Code, Figures, Report, Subject};

/// The gauges, and the series that they have.
pub struct Gauges {
    slices: IntGaugeVec,
    gib: IntGaugeVec,
    mismatch: IntGaugeVec,
    set: Mutex<Series>,
}

/// Labels of series.
#[derive(Default, PartialEq, Eq)]
struct Series {
    slices: BTreeSet<[String; 3]>,
    gib: BTreeSet<[String; 2]>,
    mismatch: BTreeSet<[String; 2]>,
}

impl Gauges {
    /// Registers them.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let slices = IntGaugeVec::new(
            Opts::new(
                "slicegate_quota_slices",
                "Slices of a profile over all flavors of a ClusterQueue: nominal quota, what of the quota is borrowed, reserved and \
                 admitted, what is claimed on nodes, and what the GPUs can form (possible)",
            ),
            &["cluster_queue", "profile", "kind"],
        )?;
        let gib = IntGaugeVec::new(
            Opts::new(
                "slicegate_quota_gib",
                "GPU memory over all flavors of a ClusterQueue, in GiB as the names of profiles say, by the same kinds",
            ),
            &["cluster_queue", "kind"],
        )?;
        let mismatch = IntGaugeVec::new(
            Opts::new(
                "slicegate_quota_mismatch",
                "Whether the quota of a ClusterQueue does not agree with ResourceQuotas or GPUs (1), by the condition of its \
                 SliceQuotaReport",
            ),
            &["cluster_queue", "code"],
        )?;
        registry.register(Box::new(slices.clone()))?;
        registry.register(Box::new(gib.clone()))?;
        registry.register(Box::new(mismatch.clone()))?;
        Ok(Self { slices, gib, mismatch, set: Mutex::default() })
    }

    /// Shows reports, and no longer what there is no report of any more.
    pub fn show(&self, reports: &[Report]) {
        let mut series = Series::default();
        for report in reports {
            let Subject::Queue(queue) = &report.subject else { continue };
            for code in Code::ALL {
                let value = i64::from(report.mismatches.contains_key(&code));
                let labels = [queue.to_string(), code.as_str().to_owned()];
                self.mismatch.with_label_values(&labels).set(value);
                series.mismatch.insert(labels);
            }
            for (kind, value) in kinds(&report.gib) {
                let labels = [queue.to_string(), kind.to_owned()];
                self.gib.with_label_values(&labels).set(capped(value));
                series.gib.insert(labels);
            }
            let mut sums: BTreeSet<[String; 3]> = BTreeSet::new();
            for row in report.flavors.iter().flat_map(|flavor| &flavor.profiles) {
                for (kind, value) in kinds(&row.lent.figures) {
                    let labels = [queue.to_string(), row.profile.to_string(), kind.to_owned()];
                    let gauge = self.slices.with_label_values(&labels);
                    let other = if sums.contains(&labels) { gauge.get() } else { 0 };
                    gauge.set(other.saturating_add(capped(value)));
                    sums.insert(labels);
                }
            }
            series.slices.extend(sums);
        }
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        // A series that is gone already has left nothing to remove.
        for labels in set.slices.difference(&series.slices) {
            _ = self.slices.remove_label_values(labels);
        }
        for labels in set.gib.difference(&series.gib) {
            _ = self.gib.remove_label_values(labels);
        }
        for labels in set.mismatch.difference(&series.mismatch) {
            _ = self.mismatch.remove_label_values(labels);
        }
        *set = series;
    }
}

fn kinds(figures: &Figures) -> [(&'static str, u64); 6] {
    [
        ("nominal", figures.nominal),
        ("borrowed", figures.borrowed),
        ("reserved", figures.reserved),
        ("admitted", figures.admitted),
        ("claimed", figures.claimed),
        ("possible", figures.possible),
    ]
}

fn capped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use slicegate_core::report::{self, Queue, Quota, World};
    use slicegate_core::time::Timestamp;

    use super::*;

    fn reports(queues: &[&str]) -> Vec<Report> {
        let lends = |flavor: &str| Quota {
            flavor: flavor.into(),
            resource: "nvidia.com/mig-1g.10gb".into(),
            nominal: "2".into(),
            ..Quota::default()
        };
        let queue = Queue { lends: vec![lends("a"), lends("b")], ..Queue::default() };
        let world = World {
            queues: queues.iter().map(|name| ((*name).into(), queue.clone())).collect(),
            ..World::default()
        };
        report::reports(Timestamp(0), &world)
    }

    fn shown(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn a_queue_has_its_series_as_long_as_it_is_there() {
        let registry = Registry::new();
        let gauges = Gauges::new(&registry).unwrap();
        for _ in 0..2 {
            gauges.show(&reports(&["one", "two"]));
        }
        let text = shown(&registry);
        for line in [
            r#"slicegate_quota_slices{cluster_queue="one",kind="nominal",profile="1g.10gb"} 4"#,
            r#"slicegate_quota_gib{cluster_queue="one",kind="nominal"} 40"#,
            r#"slicegate_quota_mismatch{cluster_queue="two",code="FlavorWithoutNodes"} 1"#,
            r#"slicegate_quota_mismatch{cluster_queue="two",code="OvercommittedCohort"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        gauges.show(&reports(&["two"]));
        let text = shown(&registry);
        assert!(
            !text.contains(r#"cluster_queue="one""#) && text.contains(r#"cluster_queue="two""#),
            "{text}"
        );
        gauges.show(&[]);
        assert!(!shown(&registry).contains("cluster_queue"));
    }
}
