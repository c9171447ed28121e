use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::Value;
use slicegate::api::convert::workload::pod_demand;
use slicegate::api::{SlicePolicy, kueue, names};

use crate::repository;

fn documents(folder: &str) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    let mut folders = vec![repository(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                let text = fs::read_to_string(&path).unwrap();
                let values: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
                found.extend(values.into_iter().map(|value| (path.clone(), value)));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn of_kind(folder: &str, kind: &str) -> Vec<Value> {
    documents(folder).into_iter().map(|(_, v)| v).filter(|v| v["kind"] == kind).collect()
}

#[test]
fn every_sample_asks_for_slices_that_the_queue_lends() {
    let queue = of_kind("kueue", "ClusterQueue").remove(0);
    let covered: BTreeSet<String> =
        serde_json::from_value(queue["spec"]["resourceGroups"][0]["coveredResources"].clone()).unwrap();
    let mut samples = 0;
    for (path, document) in documents("samples") {
        let spec = match document["kind"].as_str().unwrap() {
            "Kustomization" => continue,
            "Pod" => &document["spec"],
            _ => &document["spec"]["template"]["spec"],
        };
        let spec: PodSpec = serde_json::from_value(spec.clone()).unwrap();
        let (slices, _) = pod_demand(&spec).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!slices.is_empty(), "{} asks for no slice", path.display());
        for profile in slices.keys() {
            assert!(covered.contains(&profile.resource()), "{}: no quota for {profile}", path.display());
        }
        assert_eq!(document["metadata"]["labels"][names::QUEUE_LABEL], "mig", "{}", path.display());
        samples += 1;
    }
    assert_eq!(samples, 5);
}

#[test]
fn every_flavor_of_the_queue_has_a_quota_for_every_resource() {
    let queue = of_kind("kueue", "ClusterQueue").remove(0);
    let flavors: BTreeSet<String> = of_kind("kueue", "ResourceFlavor")
        .into_iter()
        .map(|f| serde_json::from_value::<kueue::ResourceFlavor>(f).unwrap().metadata.name.unwrap())
        .collect();
    let group = &queue["spec"]["resourceGroups"][0];
    for flavor in group["flavors"].as_array().unwrap() {
        assert!(flavors.contains(flavor["name"].as_str().unwrap()), "{}", flavor["name"]);
        let listed: Vec<&Value> =
            flavor["resources"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
        assert_eq!(listed, group["coveredResources"].as_array().unwrap().iter().collect::<Vec<_>>());
    }
}

#[test]
fn the_check_names_a_policy_that_is_there() {
    let check: kueue::AdmissionCheck =
        serde_json::from_value(of_kind("kueue", "AdmissionCheck").remove(0)).unwrap();
    let policy: SlicePolicy = serde_json::from_value(of_kind("kueue", "SlicePolicy").remove(0)).unwrap();
    assert_eq!(check.spec.controller_name, names::CONTROLLER_NAME);
    let reference = check.spec.parameters.unwrap();
    assert_eq!((reference.api_group.as_str(), reference.kind.as_str()), (names::GROUP, "SlicePolicy"));
    assert_eq!(Some(reference.name), policy.metadata.name);
}

#[test]
fn the_policies_speak_of_the_gate_that_the_controller_removes() {
    let gate = format!("'{}'", names::GATE);
    for file in ["config/policy/gate.yaml", "config/policy/ungate.yaml"] {
        assert!(fs::read_to_string(repository(file)).unwrap().contains(&gate), "{file}");
    }
}
