use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use prometheus::Registry;
use serde::de::DeserializeOwned;

use super::*;
use crate::api::convert::now;
use crate::api::{MIGNode, kueue};
use crate::controller::index::{Change, Update};
use crate::runtime::clock::since_boot;

fn read<K: Resource + DeserializeOwned>(yaml: &str) -> K {
    serde_saphyr::from_str(yaml).unwrap()
}

/// A MIGNode of this resourceVersion with these claims and slices.
fn mig_node(version: u32, claims: &str, slices: &str) -> Update {
    Update::MigNode(Change::Apply(read::<MIGNode>(&format!(
        r#"
apiVersion: slicegate.dev/v1alpha1
kind: MIGNode
metadata: {{name: node, uid: n-1, resourceVersion: "{version}", generation: 1}}
spec:
  claims: {claims}
status:
  models: [{{name: A100, units: 8, profiles: [{{name: 1g.10gb, id: 19, size: 1, starts: [0, 1], maxCount: 7, memoryMiB: 9728}}]}}]
  gpus: [{{uuid: GPU-1, index: 0, model: A100, migMode: Enabled, health: Healthy}}]
  slices: {slices}
"#
    ))))
}

const CLAIM: &str = "[{workload: {namespace: team, name: job-w, uid: w-1}, attempt: a, podSet: main, profile: 1g.10gb, slices: 2, pods: 2}]";
const HELD: &str = r#"[{gpu: GPU-1, profile: 1g.10gb, start: 0, size: 1, state: InUse, since: "2026-11-24T10:00:00Z", pod: team/w-0}]"#;

/// What a controller knows of a workload with two pods, one of which runs.
fn world() -> Index {
    let mut index = Index::default();
    let workload = read::<kueue::Workload>(
        r#"
apiVersion: kueue.x-k8s.io/v1beta2
kind: Workload
metadata: {name: job-w, namespace: team, uid: w-1, resourceVersion: "1"}
spec: {queueName: batch}
status:
  admissionChecks: [{name: slicegate, state: Ready, message: "", lastTransitionTime: "2026-11-24T10:00:00Z"}]
"#,
    );
    let check = read::<kueue::AdmissionCheck>(
        "{apiVersion: kueue.x-k8s.io/v1beta2, kind: AdmissionCheck, metadata: {name: slicegate}, spec: {controllerName: slicegate.dev/mig}}",
    );
    index.apply(now(), Update::Check(Change::Apply(check)));
    index.apply(now(), Update::Workload(Change::Apply(workload)));
    index.apply(now(), Update::Pod(Change::Apply(pod("1", "Running"))));
    index.apply(now(), mig_node(1, CLAIM, HELD));
    index
}

fn pod(version: &str, phase: &str) -> Pod {
    read(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  {{name: w-0, namespace: team, uid: p-1, resourceVersion: "{version}", labels: {{slicegate.dev/workload: w-1, kueue.x-k8s.io/podset: main}}}}
spec: {{nodeName: node, containers: [{{name: c, resources: {{limits: {{nvidia.com/mig-1g.10gb: 1}}}}}}]}}
status: {{phase: {phase}}}
"#
    ))
}

/// Counters, a lease that ends when it is told to, and thereby the time: of what comes after it nothing is counted.
struct Stand {
    chargeback: Chargeback,
    registry: Registry,
    hold: Hold,
    start: Duration,
}

impl Stand {
    fn new() -> Self {
        let start = since_boot().checked_sub(Duration::from_secs(1)).unwrap();
        let (chargeback, registry) = (Chargeback::new().unwrap(), Registry::new());
        registry.register(Box::new(chargeback.clone())).unwrap();
        let hold = Hold::new(u64::try_from(start.as_nanos()).unwrap());
        Self { chargeback, registry, hold, start }
    }

    /// So many milliseconds after the start.
    fn at(&self, milliseconds: u64) {
        self.hold.extend(self.start + Duration::from_millis(milliseconds));
    }

    fn follow(&self, index: &mut Index) {
        self.chargeback.follow(&self.hold, index);
    }

    /// What is shown, in thousandths, by metric and state.
    fn shown(&self) -> BTreeMap<String, i64> {
        let mut shown = BTreeMap::new();
        for family in self.registry.gather() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric.get_label().iter().find(|l| l.name() == name).unwrap().value().to_owned()
                };
                assert_eq!(["namespace", "local_queue", "profile"].map(label), ["team", "batch", "1g.10gb"]);
                let name = family.name().trim_start_matches("slicegate_slice_").trim_end_matches("_total");
                #[expect(clippy::cast_possible_truncation, reason = "small")]
                shown.insert(
                    format!("{name} {}", label("state")),
                    (metric.get_counter().get_value() * 1e3).round() as i64,
                );
            }
        }
        shown
    }
}

fn counted(used: i64, idle: i64) -> BTreeMap<String, i64> {
    let all = [
        ("seconds used", used),
        ("seconds idle", idle),
        ("memory_mib_seconds used", used * 9728),
        ("memory_mib_seconds idle", idle * 9728),
    ];
    all.map(|(name, value)| (name.to_owned(), value)).into()
}

#[test]
fn a_series_begins_with_0_and_goes_on_between_events() {
    let (stand, mut index) = (Stand::new(), world());
    assert_eq!(stand.shown(), BTreeMap::new(), "a replica that does not lead shows nothing");
    stand.follow(&mut index);
    stand.at(400);
    assert_eq!(stand.shown(), counted(0, 0), "what came before is not lost, but shown later");
    stand.at(500);
    assert_eq!(stand.shown(), counted(500, 500), "nothing has happened, time has passed");
    assert_eq!(stand.shown(), counted(500, 500));
}

#[test]
fn what_has_changed_counts_from_then_on() {
    let (stand, mut index) = (Stand::new(), world());
    stand.follow(&mut index);
    stand.shown();
    stand.at(100);
    // The pod is over; its agent has not noticed.
    index.apply(now(), Update::Pod(Change::Apply(pod("2", "Succeeded"))));
    stand.follow(&mut index);
    stand.at(300);
    assert_eq!(stand.shown(), counted(100, 100 + 400));
    // The claim is given back.
    index.apply(now(), mig_node(2, "[]", HELD));
    stand.follow(&mut index);
    stand.at(900);
    assert_eq!(stand.shown(), counted(100, 500));
}

#[test]
fn a_pod_that_is_gone_or_moves_is_noticed_without_a_word_of_its_node() {
    for gone in [true, false] {
        let (stand, mut index) = (Stand::new(), world());
        stand.follow(&mut index);
        stand.shown();
        let update = if gone {
            Change::Delete(pod("2", "Running"))
        } else {
            let mut pod = pod("2", "Running");
            pod.spec.as_mut().unwrap().node_name = Some("elsewhere".to_owned());
            Change::Apply(pod)
        };
        index.apply(now(), Update::Pod(update));
        stand.follow(&mut index);
        stand.at(100);
        assert_eq!(stand.shown(), counted(0, 200));
    }
}

#[test]
fn nothing_is_counted_that_another_leader_counts() {
    let (stand, mut index) = (Stand::new(), world());
    stand.follow(&mut index);
    stand.shown();
    // The lease has reached until here, and this process does not wake before it is long over.
    stand.at(250);
    stand.follow(&mut index);
    assert_eq!(stand.shown(), counted(250, 250));
    stand.hold.end();
    stand.follow(&mut index);
    assert_eq!(stand.shown(), counted(250, 250));
}
