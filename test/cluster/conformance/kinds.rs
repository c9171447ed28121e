//! The kinds of object that take part, and what of them the model has.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use serde_json::{Value, json};
use slicegate_core::sim::api_server::{Kind, Object};

use super::NAMESPACE;
use super::dice::Dice;

/// A kind as the API server has it, too.
pub trait Mirrored: Kind {
    const API_VERSION: &'static str;
    /// Empty for objects of the whole cluster.
    const NAMESPACE: &'static str;
    /// Where its objects are.
    const PATH: &'static str;
    /// Whether the API server judges changes of it by rules of its own (no gate is ever added, …), and lets labels be changed
    /// through `status`. What would break those rules is not asked for: the model does not have them.
    const BUILT_IN: bool = false;

    /// Any `spec` to begin with.
    fn first(dice: &mut Dice) -> Self::Spec;
    /// Another `spec` that an object may get that has this one; or the same.
    fn next(dice: &mut Dice, spec: &Self::Spec) -> Self::Spec;
    /// Any `status`; `fresh` is a number that no other status has.
    fn report(dice: &mut Dice, status: &Self::Status, fresh: u32) -> Self::Status;
    /// One entry of a list in `status` to be applied, where there is such a list.
    fn entry(dice: &mut Dice, fresh: u32) -> Option<Entry> {
        let _ = (dice, fresh);
        None
    }
    /// What applying it does.
    fn apply(status: &mut Self::Status, entry: &Entry) {
        let _ = (status, entry);
    }
    /// The `spec` once the object is bound to a node, if it can be.
    fn bound(spec: &Self::Spec) -> Option<Self::Spec> {
        let _ = spec;
        None
    }

    /// `spec` of a new object.
    fn spec_to_json(spec: &Self::Spec) -> Value;
    /// Makes the `spec` of an object that was read another one.
    fn edit(object: &mut Value, spec: &Self::Spec) {
        object["spec"] = Self::spec_to_json(spec);
    }
    /// Content type and `spec` of a patch.
    fn patch(spec: &Self::Spec) -> (&'static str, Value) {
        (MERGE, Self::spec_to_json(spec))
    }
    /// `status`, for a merge patch.
    fn status_to_json(status: &Self::Status) -> Value;
    fn spec_of(object: &Value) -> Self::Spec;
    fn status_of(object: &Value) -> Self::Status;
}

pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// An entry of `status.admissionChecks`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub check: &'static str,
    pub state: &'static str,
    pub message: u32,
}

const TIME: &str = "2026-01-01T00:00:00Z";

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
}

/// The number at the end of a text.
fn numbered(value: &Value) -> u32 {
    let text = value.as_str().unwrap_or_default();
    text.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn length(value: &Value) -> u32 {
    value.as_array().map_or(0, |list| u32::try_from(list.len()).unwrap())
}

#[derive(Clone, Debug, PartialEq)]
pub struct MigNode;

/// How many slices a MIGNode's one GPU is to have, and how many are claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct Slices {
    wanted: u32,
    claimed: u32,
}

impl Kind for MigNode {
    type Spec = Slices;
    /// `agentVersion`; 0 for none.
    type Status = u32;
    const NAME: &'static str = "MIGNode";
}

impl Mirrored for MigNode {
    const API_VERSION: &'static str = "slicegate.dev/v1alpha1";
    const NAMESPACE: &'static str = "";
    const PATH: &'static str = "/apis/slicegate.dev/v1alpha1/mignodes";

    fn first(dice: &mut Dice) -> Slices {
        Slices { wanted: dice.below(8), claimed: dice.below(3) }
    }

    fn next(dice: &mut Dice, spec: &Slices) -> Slices {
        if dice.percent(10) { spec.clone() } else { Self::first(dice) }
    }

    fn report(dice: &mut Dice, status: &u32, fresh: u32) -> u32 {
        if dice.percent(10) && *status > 0 { *status } else { fresh }
    }

    fn spec_to_json(spec: &Slices) -> Value {
        let slices: Vec<_> =
            (0..spec.wanted).map(|start| json!({"profile": "1g.10gb", "start": start, "size": 1})).collect();
        let claim = json!({
            "workload": {"namespace": "a", "name": "w", "uid": "u"},
            "attempt": "1", "podSet": "main", "profile": "1g.10gb", "slices": 1, "pods": 1,
        });
        let claims = vec![claim; usize::try_from(spec.claimed).unwrap()];
        json!({"gpus": [{"uuid": "GPU-0", "slices": slices}], "claims": claims})
    }

    fn status_to_json(status: &u32) -> Value {
        json!({"agentVersion": format!("v-{status}")})
    }

    fn spec_of(object: &Value) -> Slices {
        Slices {
            wanted: length(&object["spec"]["gpus"][0]["slices"]),
            claimed: length(&object["spec"]["claims"]),
        }
    }

    fn status_of(object: &Value) -> u32 {
        numbered(&object["status"]["agentVersion"])
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workload;

#[derive(Clone, Debug, PartialEq)]
pub struct Activity {
    active: bool,
    priority: u32,
}

impl Kind for Workload {
    type Spec = Activity;
    /// State and message by check.
    type Status = BTreeMap<Arc<str>, (Arc<str>, u32)>;
    const NAME: &'static str = "Workload";
}

const CHECKS: [&str; 2] = ["mig-a", "mig-b"];
const STATES: [&str; 3] = ["Pending", "Ready", "Retry"];

impl Mirrored for Workload {
    const API_VERSION: &'static str = "kueue.x-k8s.io/v1beta2";
    const NAMESPACE: &'static str = NAMESPACE;
    const PATH: &'static str = "/apis/kueue.x-k8s.io/v1beta2/namespaces/conformance/workloads";

    fn first(dice: &mut Dice) -> Activity {
        Activity { active: dice.percent(50), priority: dice.below(5) }
    }

    fn next(dice: &mut Dice, _: &Activity) -> Activity {
        Self::first(dice)
    }

    /// As Kueue writes it: all the entries. No entry is ever written twice by two writers, who would then both own it, which
    /// is a change that only managed fields show.
    fn report(dice: &mut Dice, status: &Self::Status, fresh: u32) -> Self::Status {
        if dice.percent(10) && !status.is_empty() {
            return status.clone();
        }
        let mut status = status.clone();
        let check = dice.pick(&CHECKS);
        let others = status.keys().any(|other| **other != *check);
        if others && dice.percent(20) {
            status.remove(check);
        } else {
            status.insert(check.into(), (dice.pick(&STATES).into(), fresh));
        }
        status
    }

    fn entry(dice: &mut Dice, fresh: u32) -> Option<Entry> {
        Some(Entry { check: dice.pick(&CHECKS), state: dice.pick(&STATES), message: fresh })
    }

    fn apply(status: &mut Self::Status, entry: &Entry) {
        status.insert(entry.check.into(), (entry.state.into(), entry.message));
    }

    fn spec_to_json(spec: &Activity) -> Value {
        json!({
            "active": spec.active,
            "priority": spec.priority,
            "podSets": [{
                "name": "main",
                "count": 1,
                "template": {"spec": {"containers": [{"name": "main", "image": "none"}], "restartPolicy": "Never"}},
            }],
        })
    }

    fn status_to_json(status: &Self::Status) -> Value {
        let entries: Vec<_> =
            status.iter().map(|(check, (state, message))| entry_to_json(check, state, *message)).collect();
        json!({"admissionChecks": entries})
    }

    fn spec_of(object: &Value) -> Activity {
        let spec = &object["spec"];
        Activity { active: spec["active"] == json!(true), priority: number(&spec["priority"]) }
    }

    fn status_of(object: &Value) -> Self::Status {
        let entries = object["status"]["admissionChecks"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().into();
        entries.map(|e| (text(&e["name"]), (text(&e["state"]), numbered(&e["message"])))).collect()
    }
}

/// An entry with every field, as `src/controller/writer.rs` sends it.
pub fn entry_to_json(check: &str, state: &str, message: u32) -> Value {
    json!({
        "name": check,
        "state": state,
        "message": format!("message-{message}"),
        "lastTransitionTime": TIME,
        "podSetUpdates": [],
        "requeueAfterSeconds": 0,
    })
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pod;

#[derive(Clone, Debug, PartialEq)]
pub struct PodSpec {
    gated: bool,
    host: Option<u32>,
    image: u32,
    bound: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

const GATE: &str = "slicegate.dev/claim";
pub const NODE: &str = "node-a";

impl Kind for Pod {
    type Spec = PodSpec;
    type Status = Phase;
    const NAME: &'static str = "Pod";
    const UNCONDITIONAL_UPDATE: bool = true;
    const GRACEFUL: bool = true;

    fn raises_generation(before: &PodSpec, after: &PodSpec) -> bool {
        PodSpec { bound: after.bound, ..before.clone() } != *after
    }

    fn lingers(pod: &Object<Self>) -> bool {
        pod.spec.bound && !matches!(pod.status, Phase::Succeeded | Phase::Failed)
    }
}

impl Mirrored for Pod {
    const API_VERSION: &'static str = "v1";
    const NAMESPACE: &'static str = NAMESPACE;
    const PATH: &'static str = "/api/v1/namespaces/conformance/pods";
    const BUILT_IN: bool = true;

    fn first(dice: &mut Dice) -> PodSpec {
        let gated = dice.percent(70);
        PodSpec { gated, host: None, image: dice.below(3), bound: !gated && dice.percent(50) }
    }

    fn next(dice: &mut Dice, spec: &PodSpec) -> PodSpec {
        let mut spec = spec.clone();
        if spec.gated && dice.percent(60) {
            // The controller's own write.
            spec.gated = false;
            spec.host = spec.host.or(Some(dice.below(3)));
        } else {
            spec.image = dice.below(3);
        }
        spec
    }

    fn report(dice: &mut Dice, status: &Phase, _: u32) -> Phase {
        match status {
            Phase::Pending => dice.pick(&[Phase::Pending, Phase::Running]),
            Phase::Running => dice.pick(&[Phase::Running, Phase::Succeeded, Phase::Failed]),
            over => *over,
        }
    }

    fn bound(spec: &PodSpec) -> Option<PodSpec> {
        (!spec.gated && !spec.bound).then(|| PodSpec { bound: true, ..spec.clone() })
    }

    fn spec_to_json(spec: &PodSpec) -> Value {
        let mut json = json!({
            "containers": [{"name": "main", "image": image(spec)}],
            "nodeSelector": selector(spec),
        });
        if spec.gated {
            json["schedulingGates"] = json!([{"name": GATE}]);
        }
        if spec.bound {
            json["nodeName"] = json!(NODE);
        }
        json
    }

    fn edit(object: &mut Value, spec: &PodSpec) {
        let json = &mut object["spec"];
        json["containers"][0]["image"] = json!(image(spec));
        json["nodeSelector"] = selector(spec);
        if !spec.gated {
            json["schedulingGates"] = Value::Null;
        }
    }

    fn patch(spec: &PodSpec) -> (&'static str, Value) {
        let mut json = json!({
            "containers": [{"name": "main", "image": image(spec)}],
            "nodeSelector": selector(spec),
        });
        if !spec.gated {
            json["schedulingGates"] = json!([{"$patch": "delete", "name": GATE}]);
        }
        (STRATEGIC, json)
    }

    fn status_to_json(status: &Phase) -> Value {
        json!({"phase": format!("{status:?}")})
    }

    fn spec_of(object: &Value) -> PodSpec {
        let spec = &object["spec"];
        PodSpec {
            gated: length(&spec["schedulingGates"]) > 0,
            host: spec["nodeSelector"].get("host").map(numbered),
            image: numbered(&spec["containers"][0]["image"]),
            bound: spec["nodeName"] == json!(NODE),
        }
    }

    fn status_of(object: &Value) -> Phase {
        match object["status"]["phase"].as_str() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Pending,
        }
    }
}

fn image(spec: &PodSpec) -> String {
    format!("image-{}", spec.image)
}

fn selector(spec: &PodSpec) -> Value {
    spec.host.map_or(json!({}), |host| json!({"host": format!("host-{host}")}))
}
