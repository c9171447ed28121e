//! Our AdmissionChecks, their SlicePolicies, and whether each check is `Active`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use slicegate_core::constraints::Constraints;
use slicegate_core::quota::Mode;
use slicegate_core::workload::{KeepRoom, Policy};

use super::gate::presence::Presence;
use crate::api::convert::workload::{Checks, Flavors, Queues};
use crate::api::{
    OverHard, QuotaMode, SlicePlacement, SlicePolicy, SlicePolicySpec, SliceReuse, kueue, names,
};

/// Condition type that Kueue looks at (`apis/kueue/v1beta2/admissioncheck_types.go`, `AdmissionCheckActive`).
pub const ACTIVE: &str = "Active";

/// What the condition `Active` of an AdmissionCheck should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The AdmissionCheck.
    pub check: String,
    /// Its resourceVersion.
    pub version: String,
    /// Its generation.
    pub generation: i64,
    /// Whether workloads can pass it.
    pub active: bool,
    /// `Active` or `BadParametersRef`, Kueue's own reasons, or `GateMissing`.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// The AdmissionChecks with our controllerName, and all SlicePolicies.
#[derive(Default)]
pub struct Book {
    checks: BTreeMap<String, kueue::AdmissionCheck>,
    /// Those of Kueue's ProvisioningRequest controller.
    provisioning: BTreeSet<String>,
    policies: BTreeMap<String, SlicePolicySpec>,
    resolved: Checks,
    /// Why no check can be passed, if pods are not gated: they would take slices past the queue.
    gate_missing: Option<&'static str>,
}

impl Book {
    /// Takes in whether pods are gated.
    pub fn set_gate(&mut self, presence: Presence) {
        self.gate_missing = match presence {
            Presence::Gated => None,
            Presence::Missing(message) => Some(message),
        };
    }

    /// Takes in an AdmissionCheck, which may be another controller's.
    pub fn set_check(&mut self, check: kueue::AdmissionCheck) {
        // The name may have been another controller's before.
        self.forget_check(&check.name_any());
        match check.spec.controller_name.as_str() {
            names::CONTROLLER_NAME => {
                self.checks.insert(check.name_any(), check);
            }
            names::PROVISIONING_CONTROLLER => {
                self.provisioning.insert(check.name_any());
            }
            _ => {}
        }
        self.resolve();
    }

    /// Forgets an AdmissionCheck.
    pub fn forget_check(&mut self, name: &str) {
        self.checks.remove(name);
        self.provisioning.remove(name);
        self.resolve();
    }

    /// Takes in a SlicePolicy.
    pub fn set_policy(&mut self, policy: SlicePolicy) {
        self.policies.insert(policy.name_any(), policy.spec);
        self.resolve();
    }

    /// Forgets a SlicePolicy.
    pub fn forget_policy(&mut self, name: &str) {
        self.policies.remove(name);
        self.resolve();
    }

    /// Forgets all AdmissionChecks but these.
    pub fn retain_checks(&mut self, names: &BTreeSet<String>) {
        self.checks.retain(|name, _| names.contains(name));
        self.provisioning.retain(|name| names.contains(name));
        self.resolve();
    }

    /// Forgets all SlicePolicies but these.
    pub fn retain_policies(&mut self, names: &BTreeSet<String>) {
        self.policies.retain(|name, _| names.contains(name));
        self.resolve();
    }

    /// Our checks with their policies.
    pub fn policies(&self) -> &Checks {
        &self.resolved
    }

    /// The AdmissionChecks of Kueue's ProvisioningRequest controller.
    pub fn provisioning(&self) -> &BTreeSet<String> {
        &self.provisioning
    }

    /// The verdicts that differ from what the AdmissionChecks say.
    pub fn stale(&self, queues: &Queues, flavors: &Flavors) -> Vec<Verdict> {
        self.checks
            .values()
            .map(|check| self.verdict(check, &topologies(&check.name_any(), queues, flavors)))
            .filter(|verdict| {
                let conditions = self.checks[&verdict.check].status.iter().flat_map(|s| &s.conditions);
                !conditions.into_iter().any(|c| says(c, verdict))
            })
            .collect()
    }

    fn resolve(&mut self) {
        let resolved = self
            .checks
            .iter()
            .map(|(name, check)| (name.clone(), self.policy_of(check).ok().map(|spec| policy(&spec))))
            .collect();
        self.resolved = resolved;
    }

    fn verdict(&self, check: &kueue::AdmissionCheck, refused: &[String]) -> Verdict {
        let (active, reason, message) = match self.policy_of(check) {
            _ if self.gate_missing.is_some() => {
                (false, "GateMissing", self.gate_missing.unwrap_or_default().to_owned())
            }
            Ok(_) if refused.is_empty() => {
                (true, "Active", "Slices are reserved for the workloads of this check.".to_owned())
            }
            // One flavor of one queue must not stop the others.
            Ok(_) => {
                let message = format!(
                    "Slices are reserved for the workloads of this check, but not in {}: Topology-Aware Scheduling counts slices \
                     that do not exist yet as zero; use flavors without topologyName for MIG.",
                    refused.join(", ")
                );
                (true, "Active", message)
            }
            Err(error) => (false, "BadParametersRef", error),
        };
        Verdict {
            check: check.name_any(),
            version: check.resource_version().unwrap_or_default(),
            generation: check.metadata.generation.unwrap_or_default(),
            active,
            reason,
            message,
        }
    }

    fn policy_of(&self, check: &kueue::AdmissionCheck) -> Result<SlicePolicySpec, String> {
        let Some(reference) = &check.spec.parameters else { return Ok(SlicePolicySpec::default()) };
        if reference.api_group != names::GROUP || reference.kind != "SlicePolicy" {
            return Err(format!(
                "spec.parameters names a {} of {}; it must name a SlicePolicy of {}, or be left out for the defaults.",
                reference.kind,
                reference.api_group,
                names::GROUP
            ));
        }
        let policy = self.policies.get(&reference.name).cloned().ok_or_else(|| {
            format!(
                "SlicePolicy {:?} does not exist; create it, or remove spec.parameters to use the defaults.",
                reference.name
            )
        })?;
        match unknown(&policy) {
            Some((field, values)) => Err(format!(
                "SlicePolicy {:?} has a {field} that this version does not know; set it to one of {values}.",
                reference.name
            )),
            None => Ok(policy),
        }
    }
}

/// The flavors with Topology-Aware Scheduling for which ClusterQueues ask a check, as people call them.
fn topologies(check: &str, queues: &Queues, flavors: &Flavors) -> Vec<String> {
    let mut found = Vec::new();
    for (queue, spec) in queues {
        let rules = spec.admission_checks_strategy.iter().flat_map(|strategy| &strategy.admission_checks);
        let Some(rule) = rules.into_iter().find(|rule| rule.name == check) else { continue };
        for flavor in spec.resource_groups.iter().flat_map(|group| &group.flavors).map(|f| &f.name) {
            let asked = rule.on_flavors.is_empty() || rule.on_flavors.contains(flavor);
            if asked && flavors.get(flavor).is_some_and(|f| f.topology_name.is_some()) {
                found.push(format!("flavor {flavor} of ClusterQueue {queue}"));
            }
        }
    }
    found.dedup();
    found
}

/// The first field of a policy with a value of a later version, and the values that this one knows.
fn unknown(spec: &SlicePolicySpec) -> Option<(&'static str, &'static str)> {
    let reuse = (spec.slice_reuse == SliceReuse::Unknown).then_some(("sliceReuse", "Always, Never"));
    let placement = spec.slice_placement == SlicePlacement::Unknown;
    let placement = placement.then_some(("slicePlacement", "Pack, Spread"));
    let quota = (spec.quota == QuotaMode::Unknown).then_some(("quota", "Enforce, Report, Off"));
    let over = (spec.quota_over_hard == OverHard::Unknown).then_some(("quotaOverHard", "Wait, Reject"));
    reuse.or(placement).or(quota).or(over)
}

fn policy(spec: &SlicePolicySpec) -> Policy {
    Policy {
        hold: Duration::from_secs(u64::from(spec.hold_seconds)),
        max_hold: Duration::from_secs(u64::from(spec.max_hold_seconds)),
        nodes: Constraints { node_selector: spec.node_selector.clone(), ..Constraints::default() },
        reuse: spec.slice_reuse == SliceReuse::Always,
        spread: spec.slice_placement == SlicePlacement::Spread,
        idle_retention: Duration::from_secs(u64::from(spec.idle_slice_retention_seconds)),
        keep_room: KeepRoom {
            after: Duration::from_secs(u64::from(spec.keep_room.after_seconds)),
            lasts: Duration::from_secs(u64::from(spec.keep_room.for_seconds)),
            workloads: spec.keep_room.max_workloads,
            percent: spec.keep_room.max_percent,
        },
        quota: match spec.quota {
            QuotaMode::Off => Mode::Off,
            QuotaMode::Report => Mode::Report,
            QuotaMode::Enforce | QuotaMode::Unknown => Mode::Enforce,
        },
        reject_over_hard: spec.quota_over_hard == OverHard::Reject,
    }
}

fn says(condition: &Condition, verdict: &Verdict) -> bool {
    condition.type_ == ACTIVE
        && condition.status == status(verdict.active)
        && condition.reason == verdict.reason
        && condition.message == verdict.message
        && condition.observed_generation == Some(verdict.generation)
}

/// A condition's status.
pub fn status(active: bool) -> &'static str {
    if active { "True" } else { "False" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stale(book: &Book) -> Vec<Verdict> {
        book.stale(&Queues::new(), &Flavors::new())
    }

    #[test]
    fn a_flavor_with_a_topology_is_refused_by_name_and_the_others_go_on() {
        let mut book = Book::default();
        book.set_check(check(None));
        let flavor = |topology: Option<&str>| kueue::ResourceFlavorSpec {
            topology_name: topology.map(str::to_owned),
            ..kueue::ResourceFlavorSpec::default()
        };
        let flavors = [("plain", None), ("tas", Some("racks")), ("elsewhere", Some("racks"))];
        let flavors: Flavors = flavors.into_iter().map(|(name, t)| (name.to_owned(), flavor(t))).collect();
        let lends = |names: &[&str], on_flavors: &[&str]| kueue::ClusterQueueSpec {
            resource_groups: vec![kueue::ResourceGroup {
                flavors: names
                    .iter()
                    .map(|n| kueue::FlavorQuotas { name: (*n).to_owned(), ..Default::default() })
                    .collect(),
                ..kueue::ResourceGroup::default()
            }],
            admission_checks_strategy: Some(kueue::AdmissionChecksStrategy {
                admission_checks: vec![kueue::AdmissionCheckStrategyRule {
                    name: "slicegate".to_owned(),
                    on_flavors: on_flavors.iter().map(|n| (*n).to_owned()).collect(),
                }],
            }),
            ..kueue::ClusterQueueSpec::default()
        };
        let mut queues = Queues::new();
        queues.insert("careful".to_owned(), lends(&["plain", "elsewhere"], &["plain"]));
        assert!(!book.stale(&queues, &flavors)[0].message.contains("Topology"), "not asked there");
        queues.insert("racked".to_owned(), lends(&["plain", "tas"], &[]));
        let verdict = book.stale(&queues, &flavors).remove(0);
        assert!(verdict.active);
        assert!(
            verdict.message.contains("but not in flavor tas of ClusterQueue racked: Topology-Aware"),
            "{}",
            verdict.message
        );
    }

    fn check(parameters: Option<(&str, &str)>) -> kueue::AdmissionCheck {
        kueue::AdmissionCheck::new(
            "slicegate",
            kueue::AdmissionCheckSpec {
                controller_name: names::CONTROLLER_NAME.to_owned(),
                parameters: parameters.map(|(kind, name)| kueue::AdmissionCheckParametersReference {
                    api_group: names::GROUP.to_owned(),
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                }),
            },
        )
    }

    #[test]
    fn a_missing_or_wrong_policy_makes_the_check_inactive_and_says_why() {
        let mut book = Book::default();
        book.set_check(check(None));
        assert!(stale(&book)[0].active, "defaults need no SlicePolicy");

        book.set_check(check(Some(("SlicePolicy", "absent"))));
        let verdict = stale(&book).remove(0);
        assert!(!verdict.active);
        assert!(verdict.message.starts_with("SlicePolicy \"absent\" does not exist"), "{}", verdict.message);
        assert_eq!(book.policies()["slicegate"], None);

        book.set_policy(SlicePolicy::new(
            "absent",
            SlicePolicySpec { hold_seconds: 7, ..SlicePolicySpec::default() },
        ));
        assert!(stale(&book)[0].active);
        assert_eq!(book.policies()["slicegate"].as_ref().unwrap().hold, Duration::from_secs(7));

        book.set_check(check(Some(("ConfigMap", "x"))));
        assert!(stale(&book)[0].message.contains("names a ConfigMap"));
    }

    #[test]
    fn a_policy_with_a_value_of_a_later_version_makes_the_check_inactive_and_says_why() {
        let mut book = Book::default();
        book.set_check(check(Some(("SlicePolicy", "strict"))));
        for (field, value) in [
            ("slicePlacement", "Orbit"),
            ("sliceReuse", "Sometimes"),
            ("quota", "Wish"),
            ("quotaOverHard", "Shrug"),
        ] {
            let spec = serde_json::from_value(serde_json::json!({field: value})).unwrap();
            book.set_policy(SlicePolicy::new("strict", spec));
            let verdict = stale(&book).remove(0);
            assert_eq!((verdict.active, verdict.reason), (false, "BadParametersRef"));
            let about = format!("SlicePolicy \"strict\" has a {field} that this version does not know");
            assert!(verdict.message.starts_with(&about), "{}", verdict.message);
            assert_eq!(book.policies()["slicegate"], None);
        }
        let spec = serde_json::from_value(serde_json::json!({"slicePlacement": "Spread"})).unwrap();
        book.set_policy(SlicePolicy::new("strict", spec));
        assert!(book.policies()["slicegate"].as_ref().unwrap().spread);
    }

    #[test]
    fn every_check_is_inactive_while_pods_are_not_gated() {
        let mut book = Book::default();
        book.set_check(check(None));
        book.set_gate(Presence::Missing("Apply config/default again."));
        let verdict = stale(&book).remove(0);
        assert_eq!((verdict.active, verdict.reason), (false, "GateMissing"));
        assert_eq!(verdict.message, "Apply config/default again.");
        book.set_gate(Presence::Gated);
        assert!(stale(&book)[0].active);
    }

    #[test]
    fn a_condition_that_says_so_already_is_not_written_again() {
        let mut book = Book::default();
        let mut check = check(None);
        book.set_check(check.clone());
        let verdict = stale(&book).remove(0);
        check.status = Some(kueue::AdmissionCheckStatus {
            conditions: vec![Condition {
                type_: ACTIVE.to_owned(),
                status: "True".to_owned(),
                reason: verdict.reason.to_owned(),
                message: verdict.message,
                observed_generation: Some(0),
                last_transition_time: crate::api::convert::time(slicegate_core::time::Timestamp(0)),
            }],
        });
        book.set_check(check);
        assert_eq!(stale(&book), []);
    }

    #[test]
    fn checks_of_other_controllers_are_none_of_ours() {
        let mut book = Book::default();
        let mut check = check(None);
        check.spec.controller_name = "kueue.x-k8s.io/provisioning-request".to_owned();
        book.set_check(check);
        assert!(book.policies().is_empty());
    }
}
