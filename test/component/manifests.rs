use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod, PodSpec, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use slicegate::api::convert::workload::pod_demand;
use slicegate::api::gpu_memory::UNITS;
use slicegate::api::{MIGNode, SlicePolicy, kueue, names};
use slicegate::controller::gate;
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

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
        // What is around a team's workloads.
        if ["Kustomization", "Namespace", "ResourceQuota", "LocalQueue"]
            .contains(&document["kind"].as_str().unwrap())
        {
            continue;
        }
        let mut asked = BTreeSet::new();
        for spec in pod_specs(&document) {
            let spec: PodSpec = serde_json::from_value(spec.clone()).unwrap();
            let (slices, _) = pod_demand(&spec).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            asked.extend(slices.into_keys());
        }
        assert!(!asked.is_empty(), "{} asks for no slice", path.display());
        for profile in asked {
            assert!(covered.contains(&profile.resource()), "{}: no quota for {profile}", path.display());
        }
        assert_eq!(document["metadata"]["labels"][names::QUEUE_LABEL], "mig", "{}", path.display());
        samples += 1;
    }
    assert_eq!(samples, 9);
}

/// What the pods of a workload are made from.
fn pod_specs(document: &Value) -> Vec<&Value> {
    match document["kind"].as_str().unwrap() {
        "Pod" => vec![&document["spec"]],
        "JobSet" => {
            let jobs = document["spec"]["replicatedJobs"].as_array().unwrap();
            jobs.iter().map(|job| &job["template"]["spec"]["template"]["spec"]).collect()
        }
        "LeaderWorkerSet" => {
            let templates = &document["spec"]["leaderWorkerTemplate"];
            ["leaderTemplate", "workerTemplate"].map(|name| &templates[name]["spec"]).to_vec()
        }
        _ => vec![&document["spec"]["template"]["spec"]],
    }
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
    for file in ["policy/gate.yaml", "policy/gated.yaml", "policy/ungate.yaml", "webhook/webhook.yaml"] {
        assert!(fs::read_to_string(repository("config").join(file)).unwrap().contains(&gate), "{file}");
    }
}

#[test]
fn policy_webhook_and_refusals_speak_of_the_same_pods() {
    let named = |kind: &str, name: &str| {
        let mut found =
            of_kind("config", kind).into_iter().filter(|object| object["metadata"]["name"] == name);
        found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let condition = |of: &Value, name: &str| {
        let mut conditions = of["matchConditions"].as_array().unwrap().iter();
        conditions.find(|condition| condition["name"] == name).unwrap()["expression"].clone()
    };
    let policy = named("MutatingAdmissionPolicy", names::GATE_NAME)["spec"].clone();
    let webhook = named("MutatingWebhookConfiguration", names::GATE_NAME)["webhooks"][0].clone();
    assert_eq!(webhook["name"], names::GATE_NAME);
    for same in ["matchConditions", "failurePolicy", "reinvocationPolicy"] {
        assert_eq!(webhook[same], policy[same], "{same}");
    }
    let asks = "asks-for-a-mig-profile";
    let mut selectors = vec![webhook["namespaceSelector"].clone()];
    for (kind, name) in [
        ("MutatingAdmissionPolicy", "gate.slicegate.dev"),
        ("ValidatingAdmissionPolicy", "gated.slicegate.dev"),
        ("ValidatingAdmissionPolicy", "bound.slicegate.dev"),
    ] {
        let spec = &named(kind, name)["spec"];
        selectors.push(spec["matchConstraints"]["namespaceSelector"].clone());
        assert_eq!(condition(spec, asks), condition(&policy, asks), "{name}");
    }
    assert!(selectors[0].is_object());
    assert!(selectors.iter().all(|selector| *selector == selectors[0]), "{selectors:?}");
}

#[test]
fn policies_and_webhooks_count_memory_of_the_same_pods_in_the_same_way() {
    let named = |kind: &str, name: &str| {
        let mut found =
            of_kind("config", kind).into_iter().filter(|object| object["metadata"]["name"] == name);
        found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let [ours, instaslice] = names::MEMORY_WEBHOOKS;
    let policy = named("MutatingAdmissionPolicy", ours)["spec"].clone();
    let refusal = named("ValidatingAdmissionPolicy", ours)["spec"].clone();
    assert_eq!(refusal["matchConditions"], policy["matchConditions"]);
    assert_eq!(refusal["failurePolicy"], policy["failurePolicy"]);
    // What is a profile's name is said four times, and must be said in one way.
    let text = fs::read_to_string(repository("config/policy/memory.yaml")).unwrap();
    let patterns: BTreeSet<&str> =
        text.split(".matches('").skip(1).map(|rest| rest.split_once('\'').unwrap().0).collect();
    assert_eq!(patterns.len(), 1, "{patterns:?}");
    let text: String = text + &fs::read_to_string(repository("config/policy/agent.yaml")).unwrap();
    for unit in UNITS {
        assert!(text.contains(&format!("'{}'", unit.resource)), "{}", unit.resource);
    }

    let configuration = named("MutatingWebhookConfiguration", names::GATE_NAME);
    let webhooks = configuration["webhooks"].as_array().unwrap();
    let selectors = [
        serde_json::json!({"matchExpressions": [
            {"key": names::GPU_MEMORY_QUOTA_LABEL, "operator": "In", "values": ["enabled"]},
            {"key": names::INSTASLICE_LABEL, "operator": "NotIn", "values": ["true"]},
        ]}),
        serde_json::json!({"matchLabels": {names::INSTASLICE_LABEL: "true"}}),
    ];
    for ((name, path), selector) in
        names::MEMORY_WEBHOOKS.iter().zip(gate::review::MEMORY_PATHS).zip(&selectors)
    {
        let webhook = webhooks.iter().find(|webhook| webhook["name"] == *name).unwrap();
        for same in ["matchConditions", "failurePolicy", "reinvocationPolicy"] {
            assert_eq!(webhook[same], policy[same], "{name} {same}");
        }
        assert_eq!(webhook["clientConfig"]["service"]["path"], path);
        assert_eq!(webhook["namespaceSelector"], *selector);
    }
    let bound = |name: &str| {
        let spec = named("MutatingAdmissionPolicyBinding", name)["spec"].clone();
        assert_eq!(spec["policyName"], ours);
        spec["matchResources"]["namespaceSelector"]["matchLabels"].clone()
    };
    assert_eq!(bound(ours), serde_json::json!({names::GPU_MEMORY_QUOTA_LABEL: "enabled"}));
    assert_eq!(bound(instaslice), serde_json::json!({names::INSTASLICE_LABEL: "true"}));
}

#[test]
fn the_webhook_is_called_where_the_controller_answers() {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: gate::Args,
    }
    let defaults = Cli::parse_from(["slicegate", "--gate-webhook"]).args;
    let webhook = of_kind("config/webhook", "MutatingWebhookConfiguration").remove(0);
    let called = &webhook["webhooks"][0]["clientConfig"]["service"];
    let service = of_kind("config/webhook", "Service").remove(0);
    assert_eq!(called["path"], gate::review::PATH);
    assert_eq!(called["name"], service["metadata"]["name"]);
    assert_eq!(called["namespace"], service["metadata"]["namespace"]);
    assert_eq!(called["port"], service["spec"]["ports"][0]["port"]);
    let host = format!("{}.{}.svc", called["name"].as_str().unwrap(), called["namespace"].as_str().unwrap());
    assert_eq!(defaults.webhook_host, [host.as_str()]);
    let port = format!("containerPort: {}", defaults.webhook_listen.port());
    let overlay = fs::read_to_string(repository("config/webhook/kustomization.yaml")).unwrap();
    assert!(overlay.contains(&port), "{port}");
    let certificate = of_kind("config/webhook-cert-manager", "Certificate");
    assert!(certificate.iter().any(|c| c["spec"]["dnsNames"] == serde_json::json!([host])));
    let pods = &of_kind("config/controller", "Deployment")[0]["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&service["spec"]["selector"], pods);
    // What the controller may write are just these two.
    let rights: BTreeSet<String> = ["Role", "ClusterRole"]
        .iter()
        .flat_map(|kind| of_kind("config/webhook", kind))
        .flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default())
        .flat_map(|rule| rule["resourceNames"].as_array().cloned().unwrap_or_default())
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(rights, [gate::keeper::SECRET, names::GATE_NAME].map(String::from).into());
}

const FOLDERS: [&str; 3] = ["samples", "kueue", "config"];

#[test]
fn no_manifest_has_a_field_that_its_type_does_not_know() {
    for folder in FOLDERS {
        for (path, document) in documents(folder) {
            let path = path.display().to_string();
            let read = match document["kind"].as_str().unwrap_or_default() {
                "SlicePolicy" => as_read::<SlicePolicy>(&document),
                "MIGNode" => as_read::<MIGNode>(&document),
                "AdmissionCheck" => as_read::<kueue::AdmissionCheck>(&document),
                "ResourceFlavor" => as_read::<kueue::ResourceFlavor>(&document),
                "Namespace" => as_read::<Namespace>(&document),
                "ServiceAccount" => as_read::<ServiceAccount>(&document),
                "Role" => as_read::<Role>(&document),
                "RoleBinding" => as_read::<RoleBinding>(&document),
                "ClusterRole" => as_read::<ClusterRole>(&document),
                "ClusterRoleBinding" => as_read::<ClusterRoleBinding>(&document),
                "PodDisruptionBudget" => as_read::<PodDisruptionBudget>(&document),
                "Deployment" => as_read::<Deployment>(&document),
                "DaemonSet" => as_read::<DaemonSet>(&document),
                "Job" => as_read::<Job>(&document),
                "Pod" => as_read::<Pod>(&document),
                "ResourceQuota" => as_read::<ResourceQuota>(&document),
                "Service" => as_read::<Service>(&document),
                "MutatingWebhookConfiguration" => as_read::<MutatingWebhookConfiguration>(&document),
                // What is around the pods is read by the API server in the cluster tests.
                "JobSet" | "LeaderWorkerSet" => {
                    for spec in pod_specs(&document) {
                        let read = as_read::<PodSpec>(spec).unwrap_or_else(|error| panic!("{path}: {error}"));
                        assert_eq!(lost(spec, &read, ""), Vec::<String>::new(), "{path}");
                    }
                    continue;
                }
                "MutatingAdmissionPolicy" => as_read::<MutatingAdmissionPolicy>(&document),
                "MutatingAdmissionPolicyBinding" => as_read::<MutatingAdmissionPolicyBinding>(&document),
                "ValidatingAdmissionPolicy" => as_read::<ValidatingAdmissionPolicy>(&document),
                "ValidatingAdmissionPolicyBinding" => as_read::<ValidatingAdmissionPolicyBinding>(&document),
                "ClusterQueue" | "LocalQueue" | "PodMonitor" | "PrometheusRule" | "Issuer"
                | "Certificate" | "Kustomization" | "Component" => continue,
                other => panic!("{path}: kind {other:?} is not checked; add it here"),
            };
            let read = read.unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(document["metadata"]["name"].is_string(), "{path} has no name");
            assert_eq!(lost(&document, &read, ""), Vec::<String>::new(), "{path}");
        }
    }
}

/// The document as its type reads it.
fn as_read<T: DeserializeOwned + Serialize>(document: &Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(document.clone())?)
}

/// The fields of `document` that are not in `read`.
pub fn lost(document: &Value, read: &Value, path: &str) -> Vec<String> {
    match document {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, inner)| {
                let here = format!("{path}.{name}");
                // An empty list or map says nothing, and need not be written again.
                let empty = inner.as_array().is_some_and(Vec::is_empty)
                    || inner.as_object().is_some_and(serde_json::Map::is_empty);
                match read.get(name) {
                    None if empty => Vec::new(),
                    None => vec![here],
                    Some(read) => lost(inner, read, &here),
                }
            })
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| lost(item, &read[index], &format!("{path}[{index}]")))
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_mig_resource_that_a_manifest_names_is_a_profiles() {
    let mut named = BTreeMap::new();
    for folder in FOLDERS {
        for (path, document) in documents(folder) {
            mig_resources(&document, &mut |resource| {
                named.insert(resource.to_owned(), path.clone());
            });
        }
    }
    assert!(named.len() >= 12, "{named:?}");
    for (resource, path) in named {
        let profile = ProfileName::from_resource(&resource).unwrap();
        let profile = profile.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(profile.resource(), resource, "{}", path.display());
    }
}

/// Every key and every string of a document that is a MIG resource.
fn mig_resources(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) if text.starts_with(RESOURCE_PREFIX) => found(text),
        Value::Array(items) => items.iter().for_each(|item| mig_resources(item, found)),
        Value::Object(fields) => {
            for (name, inner) in fields {
                if name.starts_with(RESOURCE_PREFIX) {
                    found(name);
                }
                mig_resources(inner, found);
            }
        }
        _ => {}
    }
}

#[test]
fn the_quotas_are_what_the_gpus_of_each_flavor_can_hold() {
    // As kueue/cluster-queue.yaml and kueue/README.md say.
    let gpus: BTreeMap<&str, Vec<(&str, u32)>> = BTreeMap::from([
        ("any-80gb", vec![("A100-80GB", 8), ("H100-SXM5-80GB", 4)]),
        ("a30", vec![("A30-24GB", 2)]),
    ]);
    let queue = of_kind("kueue", "ClusterQueue").remove(0);
    let group = &queue["spec"]["resourceGroups"][0];
    let mut offered = BTreeSet::new();
    let mut flavors = BTreeSet::new();
    for flavor in group["flavors"].as_array().unwrap() {
        let name = flavor["name"].as_str().unwrap();
        flavors.insert(name);
        let mut most: BTreeMap<String, u64> = BTreeMap::new();
        for (model, count) in &gpus[name] {
            for profile in &nvml_sim::tables::model(model).unwrap().profiles {
                let resource = profile.name.parse::<ProfileName>().unwrap().resource();
                *most.entry(resource).or_default() += u64::from(profile.max_count * count);
            }
        }
        for resource in flavor["resources"].as_array().unwrap() {
            let resource_name = resource["name"].as_str().unwrap();
            if resource_name.starts_with(RESOURCE_PREFIX) {
                let wanted = most.get(resource_name).copied().unwrap_or(0);
                assert_eq!(resource["nominalQuota"].as_u64(), Some(wanted), "{name}: {resource_name}");
            }
        }
        offered.extend(most.into_keys());
    }
    assert_eq!(flavors, gpus.into_keys().collect());
    let covered: BTreeSet<String> = serde_json::from_value::<Vec<String>>(group["coveredResources"].clone())
        .unwrap()
        .into_iter()
        .collect();
    let mig = covered.into_iter().filter(|resource| resource.starts_with(RESOURCE_PREFIX)).collect();
    assert_eq!(offered, mig, "every profile of these GPUs is covered, and no other");
}

#[test]
fn every_kustomization_names_what_is_there_and_forgets_nothing() {
    // Servers never end, and frameworks may not be there: these are not among the samples that are applied together.
    const APART: [&str; 5] = [
        "gpu-memory-quota.yaml",
        "jobset.yaml",
        "three-budgets.yaml",
        "vllm-deployment.yaml",
        "vllm-lws.yaml",
    ];
    let mut kustomizations = 0;
    for folder in ["samples", "kueue", "config", "crds"] {
        for (path, document) in documents(folder) {
            if !matches!(document["kind"].as_str(), Some("Kustomization" | "Component")) {
                continue;
            }
            kustomizations += 1;
            let here = path.parent().unwrap();
            let named: BTreeSet<&str> = ["resources", "components"]
                .iter()
                .filter_map(|list| document[list].as_array())
                .flatten()
                .map(|entry| entry.as_str().unwrap())
                .collect();
            for entry in &named {
                let target = here.join(entry);
                let there = if target.is_dir() {
                    target.join("kustomization.yaml").is_file()
                } else {
                    target.is_file()
                };
                assert!(there, "{}: {entry} is not there", path.display());
            }
            for file in yaml_files(here) {
                assert!(
                    named.contains(file.as_str())
                        || file == "kustomization.yaml"
                        || APART.contains(&file.as_str()),
                    "{}: {file} is not applied",
                    path.display()
                );
            }
        }
    }
    assert!(kustomizations >= 10, "only {kustomizations}");
}

fn yaml_files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| Path::new(name).extension().is_some_and(|e| e == "yaml")).collect()
}

#[test]
fn the_workloads_call_the_program_as_it_wants_to_be_called() {
    for kind in ["Deployment", "DaemonSet"] {
        let document = of_kind("config", kind).remove(0);
        let spec: PodSpec = serde_json::from_value(document["spec"]["template"]["spec"].clone()).unwrap();
        let container = &spec.containers[0];
        let args = container.args.clone().unwrap();
        // Arguments before --help are read, and refused if they are not known.
        let output = Command::new(env!("CARGO_BIN_EXE_slicegate"))
            .args(&args)
            .arg("--help")
            .env("NODE_NAME", "node")
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let port = args.iter().find_map(|a| a.strip_prefix("--listen=")?.rsplit(':').next()).unwrap();
        let ports = container.ports.as_ref().unwrap();
        assert_eq!(ports.iter().map(|p| p.container_port.to_string()).collect::<Vec<_>>(), [port], "{kind}");
        assert_eq!(
            document["spec"]["selector"]["matchLabels"],
            document["spec"]["template"]["metadata"]["labels"]
        );
    }
}
