//! Queues as tests want them.

use anyhow::Result;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

const KUEUE: &str = "kueue.x-k8s.io/v1beta2";

/// A flavor for nodes with these labels.
pub fn flavor(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": name},
        "spec": {"nodeLabels": labels},
    })
}

/// An AdmissionCheck of ours with a SlicePolicy of the same name.
pub fn check(name: &str, policy: &Value) -> Vec<Value> {
    let policy = json!({
        "apiVersion": "slicegate.dev/v1alpha1", "kind": "SlicePolicy", "metadata": {"name": name}, "spec": policy,
    });
    vec![policy, check_only(name)]
}

/// The AdmissionCheck without the SlicePolicy that it names.
pub fn check_only(name: &str) -> Value {
    json!({
        "apiVersion": KUEUE, "kind": "AdmissionCheck", "metadata": {"name": name},
        "spec": {
            "controllerName": "slicegate.dev/mig",
            "parameters": {"apiGroup": "slicegate.dev", "kind": "SlicePolicy", "name": name},
        },
    })
}

/// A ClusterQueue with these checks for all its flavors. Quotas are by MIG profile; cpu and memory are boundless unless named.
pub fn cluster_queue(name: &str, checks: &[&str], flavors: &[(&str, &[(&str, u32)])]) -> Value {
    let mut covered = vec!["cpu".to_owned(), "memory".to_owned()];
    for (profile, _) in flavors.iter().flat_map(|(_, quotas)| *quotas) {
        if !covered.contains(&resource(profile)) {
            covered.push(resource(profile));
        }
    }
    let quota = |quotas: &[(&str, u32)], name: &String| {
        let quota = quotas.iter().find(|(profile, _)| resource(profile) == *name).map(|(_, quota)| *quota);
        let boundless = if matches!(name.as_str(), "cpu" | "memory") { json!("1Ti") } else { json!(0) };
        json!({"name": name, "nominalQuota": quota.map_or(boundless, |quota| json!(quota))})
    };
    let flavors = flavors.iter().map(|(flavor, quotas)| {
        json!({"name": flavor, "resources": covered.iter().map(|name| quota(quotas, name)).collect::<Vec<_>>()})
    });
    json!({
        "apiVersion": KUEUE, "kind": "ClusterQueue", "metadata": {"name": name},
        "spec": {
            "namespaceSelector": {},
            "admissionChecksStrategy": {"admissionChecks": checks.iter().map(|c| json!({"name": c})).collect::<Vec<_>>()},
            "resourceGroups": [{"coveredResources": covered, "flavors": flavors.collect::<Vec<_>>()}],
        },
    })
}

fn resource(name: &str) -> String {
    if matches!(name, "cpu" | "memory") { name.to_owned() } else { format!("nvidia.com/mig-{name}") }
}

/// A LocalQueue.
pub fn local_queue(namespace: &str, name: &str, cluster_queue: &str) -> Value {
    json!({
        "apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterQueue": cluster_queue},
    })
}

/// Changes an object of Kueue's.
pub async fn patch(
    client: &Client,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    patch: &Value,
) -> Result<()> {
    object(client, kind, namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Kueue's objects of a kind.
pub fn object(client: &Client, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let kind = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("kueue.x-k8s.io", "v1beta2", kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    }
}
