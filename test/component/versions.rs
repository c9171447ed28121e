//! Controller and agents one version apart: what each version writes, every later one reads to the same effect, and what a later
//! one will write is lost on nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use slicegate::api::convert::workload::Surroundings;
use slicegate::api::convert::{mig, pod, workload};
use slicegate::api::mig_node::{Health, MigMode, SliceState as ApiState};
use slicegate::api::{
    KeepRoom, MIGNode, MIGNodeSpec, SlicePlacement, SlicePolicy, SlicePolicySpec, SliceQuotaReport,
    SliceReuse, kueue, names,
};
use slicegate::controller::writer::CheckEntry;
use slicegate_core::node::{Holder, SliceState};
use slicegate_core::workload::{CheckState, Policy};

use crate::manifests::lost;
use crate::repository;

const FIXTURES: &str = "test/component/fixtures";
/// The version whose objects are in the newest folder.
const CURRENT: &str = "v0.1";
/// The files of objects of ours, with their kinds.
const OURS: [(&str, &str); 3] = [
    ("mignode.yaml", "MIGNode"),
    ("slicepolicy.yaml", "SlicePolicy"),
    ("slicequotareport.yaml", "SliceQuotaReport"),
];

fn versions() -> Vec<String> {
    let folders = fs::read_dir(repository(FIXTURES)).unwrap();
    folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn fixtures(version: &str, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(repository(FIXTURES).join(version).join(file)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn fixture(version: &str, file: &str) -> Value {
    fixtures(version, file).remove(0)
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// The schema of a CRD of ours.
fn schema(kind: &str) -> Value {
    let files = slicegate::api::crds::files().unwrap();
    let crds = files.into_iter().map(|(_, yaml)| serde_saphyr::from_str::<Value>(&yaml).unwrap());
    let crd = crds.into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn there_are_objects_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let (minor, _) = version.rsplit_once('.').unwrap();
    assert_eq!(format!("v{minor}"), CURRENT, "add the objects of {version}, and keep the others");
    assert!(versions().contains(&CURRENT.to_owned()));
}

#[test]
fn what_any_version_wrote_is_read_whole_and_still_accepted() {
    for version in versions() {
        for (file, kind) in OURS {
            let object = fixture(&version, file);
            let read_back = match kind {
                "MIGNode" => serde_json::to_value(read::<MIGNode>(&object)).unwrap(),
                "SliceQuotaReport" => serde_json::to_value(read::<SliceQuotaReport>(&object)).unwrap(),
                _ => serde_json::to_value(read::<SlicePolicy>(&object)).unwrap(),
            };
            assert_eq!(lost(&object, &read_back, ""), Vec::<String>::new(), "{version}/{file}");
            let mut problems = Vec::new();
            for part in ["spec", "status"] {
                if !object[part].is_null() {
                    check(&schema(kind)["properties"][part], &object[part], part, &mut problems);
                }
            }
            assert_eq!(problems, Vec::<String>::new(), "{version}/{file}");
        }
    }
}

/// What a structural schema has against a value: fields that are not known, not there, or of another kind.
fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let kind = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        _ => "integer",
    };
    if schema["type"] != kind {
        problems.push(format!("{path} is of type {}, not {kind}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        problems.push(format!("{path} may not be {value}"));
    }
    let outside = |limit: &str, sign: f64| {
        let beyond = |n: f64| schema[limit].as_f64().is_some_and(|limit| sign * n > sign * limit);
        value.as_f64().is_some_and(beyond)
    };
    if outside("minimum", -1.0) || outside("maximum", 1.0) {
        problems.push(format!("{path} may not be {value}"));
    }
    for required in schema["required"].as_array().into_iter().flatten().filter(|_| value.is_object()) {
        let name = required.as_str().unwrap();
        if value.get(name).is_none() {
            problems.push(format!("{path}.{name} has become required"));
        }
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let known = schema["properties"].get(name).or(schema.get("additionalProperties"));
        match known {
            Some(schema) => check(schema, inner, &format!("{path}.{name}"), problems),
            None => problems.push(format!("{path}.{name} is not known any more")),
        }
    }
    for inner in value.as_array().into_iter().flatten() {
        check(&schema["items"], inner, &format!("{path}[]"), problems);
    }
}

#[test]
fn a_schema_that_is_no_longer_what_it_was_is_noticed() {
    let object = fixture(CURRENT, "mignode.yaml");
    let problems = |change: &dyn Fn(&mut Value)| {
        let mut schema = schema("MIGNode")["properties"]["status"].clone();
        change(&mut schema);
        let mut problems = Vec::new();
        check(&schema, &object["status"], "status", &mut problems);
        problems.into_iter().collect::<BTreeSet<_>>()
    };
    let slices = |schema: &mut Value| schema["properties"]["slices"]["items"].take();
    assert_eq!(problems(&|_| {}), BTreeSet::new());
    let gone = problems(&|schema| {
        let mut inner = slices(schema);
        inner["properties"].as_object_mut().unwrap().remove("pod");
        schema["properties"]["slices"]["items"] = inner;
    });
    assert_eq!(gone, BTreeSet::from(["status.slices[].pod is not known any more".to_owned()]));
    let required = problems(&|schema| schema["required"] = json!(["mood"]));
    assert_eq!(required, BTreeSet::from(["status.mood has become required".to_owned()]));
    let retyped = problems(&|schema| schema["properties"]["bootID"]["type"] = json!("integer"));
    assert_eq!(retyped, BTreeSet::from(["status.bootID is of type \"integer\", not string".to_owned()]));
    let states = problems(&|schema| {
        schema["properties"]["slices"]["items"]["properties"]["state"]["enum"] = json!(["Creating", "InUse"]);
    });
    assert_eq!(states.len(), 3, "{states:?}");
}

#[test]
fn every_field_and_every_value_of_this_version_is_in_its_objects() {
    for (file, kind) in OURS {
        let object = fixture(CURRENT, file);
        let mut missing = Vec::new();
        for part in ["spec", "status"] {
            let schema = &schema(kind)["properties"][part];
            if !schema.is_null() {
                uncovered(schema, &[&object[part]], part, &mut missing);
            }
        }
        // Health and mode of a GPU are not worth a GPU each, and a policy has one value for each of its fields.
        missing.retain(|m| {
            let is_value = m.contains(" = ");
            m != "status.gpus[].migMode = \"NotSupported\""
                && m != "status.subject.kind = \"Cohort\""
                && !(kind == "SlicePolicy" && is_value)
        });
        assert_eq!(missing, Vec::<String>::new(), "add them to {FIXTURES}/{CURRENT}/{file}");
    }
}

/// The fields and values of a schema that none of these values has.
fn uncovered(schema: &Value, values: &[&Value], path: &str, missing: &mut Vec<String>) {
    for allowed in schema["enum"].as_array().into_iter().flatten() {
        if !values.contains(&allowed) {
            missing.push(format!("{path} = {allowed}"));
        }
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}.{name}");
        let found: Vec<&Value> = values.iter().filter_map(|value| value.get(name)).collect();
        if found.is_empty() {
            missing.push(here);
        } else {
            uncovered(inner, &found, &here, missing);
        }
    }
    if !schema["items"].is_null() {
        let found: Vec<&Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
        uncovered(&schema["items"], &found, &format!("{path}[]"), missing);
    }
}

#[test]
fn a_mig_node_of_version_0_1_means_what_it_meant() {
    use SliceState::{Creating, Draining, Failed, Idle, InUse};
    let object: MIGNode = read(&fixture("v0.1", "mignode.yaml"));
    let seen = mig::from_api(&object, None);
    assert!(seen.ready && seen.spec.remake_after_use);
    let usable: Vec<(&str, bool)> = seen.gpus.iter().map(|(uuid, gpu)| (uuid.as_str(), gpu.usable)).collect();
    assert_eq!(usable, [("GPU-1", true), ("GPU-2", false), ("GPU-3", false)]);
    let model = &seen.gpus.values().next().unwrap().model;
    let profile = model.profiles.iter().find(|p| p.name.as_str() == "3g.40gb").unwrap();
    assert_eq!((profile.id, profile.size, &*profile.starts, profile.max_count), (9, 4, &[0, 4][..], 2));

    let claim = &seen.spec.claims[0];
    assert_eq!(
        (&*claim.workload.namespace, &*claim.workload.name, claim.workload.uid.as_str()),
        ("team", "job-train", "w-1")
    );
    assert_eq!(
        (claim.pod_set.as_str(), claim.profile.as_str(), claim.slices, claim.pods),
        ("main", "3g.40gb", 1, 1)
    );
    let hold = &seen.spec.holds[0];
    assert_eq!((hold.gpu.as_str(), hold.start, hold.size, hold.until.0), ("GPU-2", 0, 8, 1_795_514_700_000));

    let states: Vec<SliceState> = seen.slices.iter().map(|s| s.state).collect();
    assert_eq!(states, [InUse, InUse, Idle, Creating, Draining, Failed]);
    let pod = Holder::Pod { namespace: "team".into(), name: "job-train-x7k2p".into() };
    assert_eq!(seen.slices[0].holder, Some(pod));
    assert!(seen.slices[0].restart_pod);
    assert_eq!(seen.slices[1].holder, Some(Holder::Process(4711)));
    assert_eq!(seen.slices[5].message.as_deref(), Some("NVML says no"));
    assert_eq!((seen.foreign[0].1.start, seen.foreign[0].1.size), (6, 1));
    // What the controller reads of its own, it would write the same.
    assert_eq!(mig::spec_to_api(&seen.spec), object.spec);
}

#[test]
fn a_workload_and_pods_of_version_0_1_mean_what_they_meant() {
    let document = fixture("v0.1", "workload.yaml");
    let object: kueue::Workload = read(&document);
    let (checks, flavor) =
        ([("slicegate".to_owned(), Some(Policy::default()))].into(), kueue::ResourceFlavorSpec::default());
    let around = Surroundings {
        checks: &checks,
        provisioning: &BTreeSet::new(),
        flavors: &[("any-80gb".to_owned(), flavor)].into(),
        queues: &BTreeMap::new(),
    };
    let seen = workload::from_api(&object, around).unwrap();
    assert!(seen.passed() && !seen.admitted);
    assert_eq!(seen.demand_of(&"main".into()).unwrap().pods, 1);
    // And is what would be written now.
    let entry = &document["status"]["admissionChecks"][0];
    let since = read(&entry["lastTransitionTime"]);
    let message = entry["message"].as_str().unwrap().to_owned();
    let written = CheckEntry::new(
        "slicegate".to_owned(),
        CheckState::Ready,
        message,
        since,
        &[("main".into(), seen.key.uid.clone())],
    );
    assert_eq!(serde_json::to_value(&written).unwrap(), *entry);

    let pods = fixtures("v0.1", "pods.yaml");
    let [gated, released] = [0, 1].map(|i| pod::from_api(&read::<Pod>(&pods[i])).0.unwrap());
    assert!(gated.gated && !released.gated);
    assert_eq!(released.pinned.as_deref(), Some("gpu-node"));
    for pod in [gated, released] {
        assert_eq!(pod.workload, Some(seen.key.uid.clone()));
        assert_eq!(pod.pod_set, Some("main".into()));
    }
    let annotations = &fixture("v0.1", "mignode.yaml")["metadata"]["annotations"];
    for key in [names::CONTROLLER_VERSION, names::TERM] {
        assert!(annotations[key].is_string(), "{key}");
    }
}

#[test]
fn a_slice_policy_of_version_0_1_means_what_it_meant() {
    let policy: SlicePolicy = read(&fixture("v0.1", "slicepolicy.yaml"));
    let spec = policy.spec;
    assert_eq!((spec.hold_seconds, spec.max_hold_seconds, spec.idle_slice_retention_seconds), (30, 240, 0));
    assert_eq!(spec.node_selector, BTreeMap::from([("pool".to_owned(), "mig".to_owned())]));
    assert_eq!((spec.slice_reuse, spec.slice_placement), (SliceReuse::Never, SlicePlacement::Spread));
    // One that was written before there was a choice means what it did.
    let mut before = fixture("v0.1", "slicepolicy.yaml");
    before["spec"].as_object_mut().unwrap().remove("slicePlacement");
    assert_eq!(read::<SlicePolicy>(&before).spec.slice_placement, SlicePlacement::Pack);
    let keep_room = KeepRoom { after_seconds: 120, for_seconds: 900, max_workloads: 1, max_percent: 50 };
    assert_eq!(spec.keep_room, keep_room);
}

#[test]
fn a_slice_quota_report_of_version_0_1_means_what_it_meant_and_one_of_a_later_version_can_be_read() {
    use slicegate::api::slice_quota_report::{SubjectKind, Together};
    let object = fixture("v0.1", "slicequotareport.yaml");
    let status = read::<SliceQuotaReport>(&object).status.unwrap();
    assert_eq!((status.subject.kind, status.subject.name.as_str()), (SubjectKind::ClusterQueue, "mig"));
    let flavor = &status.flavors[0];
    let profile = &flavor.profiles[0];
    assert_eq!(
        (profile.lent.figures.nominal, profile.lent.figures.possible, profile.slice_gib),
        (25, 24, 40)
    );
    assert_eq!((flavor.together, status.flavors[1].gib.free), (Together::No, None));
    let quota = &status.namespaces[0].resource_quotas[0];
    assert_eq!((quota.hard, quota.used, quota.in_flight, quota.scoped), (4, 1, 1, true));
    let mut later = object;
    later["status"]["subject"]["kind"] = json!("Fleet");
    later["status"]["flavors"][0]["together"] = json!("Mostly");
    later["status"]["mood"] = json!("good");
    let status = read::<SliceQuotaReport>(&later).status.unwrap();
    assert_eq!((status.subject.kind, status.flavors[0].together), (SubjectKind::Unknown, Together::Unknown));
}

#[test]
fn a_slice_policy_that_says_nothing_means_what_a_check_without_one_does() {
    let spec: SlicePolicySpec = read(&json!({}));
    assert_eq!(spec, SlicePolicySpec::default());
    let KeepRoom { after_seconds, for_seconds, max_workloads, max_percent } = spec.keep_room;
    let core = Policy::default().keep_room;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    assert_eq!((seconds(after_seconds), seconds(for_seconds)), (core.after, core.lasts));
    assert_eq!((max_workloads, max_percent), (core.workloads, core.percent));
}

/// What version 0.1 writes, with what a later one may add.
fn of_a_later_version() -> Value {
    let mut object = fixture("v0.1", "mignode.yaml");
    object["spec"]["appetite"] = json!({"for": "more"});
    object["spec"]["gpus"][0]["slices"][0]["tint"] = json!("blue");
    object["spec"]["gpus"][0]["slices"][2]["profile"] = json!("1g.10gb+sky");
    object["spec"]["claims"][0]["profile"] = json!("3g.40gb+sky");
    object["status"]["weather"] = json!("fine");
    object["status"]["slices"][0]["state"] = json!("Suspended");
    object["status"]["slices"][2]["state"] = json!("Parked");
    object["status"]["slices"][2]["profile"] = json!("1g.10gb+sky");
    object["status"]["gpus"][1]["health"] = json!("Convalescent");
    object["status"]["gpus"][2]["migMode"] = json!("Shared");
    object["status"]["foreign"][0]["profile"] = json!("1g.10gb+sky");
    let condition = json!({"type": "Serene", "status": "False", "reason": "Storm", "message": "", "lastTransitionTime": "2026-11-24T10:00:00Z"});
    object["status"]["conditions"].as_array_mut().unwrap().push(condition);
    object
}

#[test]
fn what_a_later_version_writes_blinds_nobody_and_loses_nothing() {
    let object: MIGNode = read(&of_a_later_version());
    let status = object.status.clone().unwrap();
    assert_eq!(status.slices[0].state, ApiState::Unknown);
    assert_eq!((status.gpus[1].health, status.gpus[2].mig_mode), (Health::Unknown, MigMode::Unknown));
    let seen = mig::from_api(&object, None);
    let before = mig::from_api(&read(&fixture("v0.1", "mignode.yaml")), None);
    assert!(seen.ready, "a condition that is not known is no reason to leave the node");
    assert_eq!(seen.gpus.values().map(|g| g.usable).collect::<Vec<_>>(), [true, false, false]);
    // All the room is taken that was taken before.
    assert_eq!(seen.slices.len(), before.slices.len());
    let places = |node: &slicegate_core::node::MigNode| -> Vec<_> {
        node.slices.iter().map(|s| (s.gpu.clone(), s.slice.start, s.slice.size)).collect()
    };
    assert_eq!(places(&seen), places(&before));
    assert_eq!((seen.foreign[0].1.start, seen.foreign[0].1.size), (6, 1));
    // Who has a slice keeps it; one that nobody has is not offered.
    assert_eq!((seen.slices[0].state, &seen.slices[0].holder), (SliceState::InUse, &before.slices[0].holder));
    assert_eq!(seen.slices[2].state, SliceState::Creating);
    // Nor is anything of the spec lost that there is a field for.
    assert_eq!(seen.spec.claims[0].profile.as_str(), "3g.40gb+sky");
    assert_eq!(mig::spec_to_api(&seen.spec), object.spec);
}

#[test]
fn an_agent_reads_the_spec_of_a_later_controller() {
    let spec: MIGNodeSpec = read(&of_a_later_version()["spec"]);
    let wanted = mig::spec_from_api(&spec).gpus;
    let names: Vec<&str> = wanted.values().flatten().map(|slice| slice.profile.as_str()).collect();
    assert_eq!(
        names,
        ["3g.40gb", "1g.10gb+me", "1g.10gb+sky"],
        "what it cannot make it does not take for unwanted"
    );
}

#[test]
fn a_workload_with_a_verdict_of_a_later_kueue_is_still_seen() {
    let mut document = fixture("v0.1", "workload.yaml");
    let entry = json!({"name": "other", "state": "Deferred", "message": "", "lastTransitionTime": "2026-11-24T10:00:00Z"});
    document["status"]["admissionChecks"].as_array_mut().unwrap().push(entry);
    let object: kueue::Workload = read(&document);
    let checks = ["slicegate", "other"].map(|name| (name.to_owned(), Some(Policy::default()))).into();
    let around = Surroundings {
        checks: &checks,
        provisioning: &BTreeSet::new(),
        flavors: &BTreeMap::new(),
        queues: &BTreeMap::new(),
    };
    let seen = workload::from_api(&object, around).unwrap();
    let states: Vec<CheckState> = seen.checks.iter().map(|c| c.state).collect();
    assert_eq!(states, [CheckState::Ready, CheckState::Retry], "left to Kueue");
}

#[test]
fn the_fixtures_name_no_file_that_is_not_read() {
    const READ: [&str; 5] =
        ["mignode.yaml", "pods.yaml", "slicepolicy.yaml", "slicequotareport.yaml", "workload.yaml"];
    for version in versions() {
        let folder = fs::read_dir(repository(Path::new(FIXTURES).join(&version).to_str().unwrap())).unwrap();
        let mut names: Vec<String> = folder.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, READ, "{version}");
    }
}
