//! Manifests: from YAML or a kustomize folder into the cluster, by server-side apply.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use serde_json::Value;

use crate::repo::output;

const MANAGER: &str = "slicegate-rig";
const LIMIT: Duration = Duration::from_secs(30);

/// Reads the documents of a YAML text; a `List` counts as its items.
pub fn parse(yaml: &str) -> Result<Vec<Value>> {
    // The size limits guard against hostile input; a rendered Kueue is larger than they allow.
    let options = serde_saphyr::options! { budget: None };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(yaml, options).context("read YAML")?;
    let mut objects = Vec::new();
    for mut document in documents {
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => objects.extend(items),
            _ if document.is_null() => {}
            _ => objects.push(document),
        }
    }
    Ok(objects)
}

/// Renders a kustomize folder.
pub async fn render(kubectl: &Path, folder: &Path) -> Result<Vec<Value>> {
    let mut command = tokio::process::Command::new(kubectl);
    let yaml = output(command.arg("kustomize").arg(folder))
        .await
        .with_context(|| format!("render {}", folder.display()))?;
    parse(&yaml)
}

/// Reads a file, or renders a kustomize folder.
pub async fn read(kubectl: &Path, path: &Path) -> Result<Vec<Value>> {
    if path.is_dir() {
        return render(kubectl, path).await;
    }
    parse(&std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?)
        .with_context(|| format!("read {}", path.display()))
}

/// Applies objects: definitions first (and waits until they are served), namespaces second, the rest in the order
/// given, at most `parallel` at a time.
pub async fn apply(client: &kube::Client, objects: Vec<Value>, parallel: usize) -> Result<()> {
    let (definitions, rest): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| kind(object) == "CustomResourceDefinition");
    let (namespaces, rest): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|object| kind(object) == "Namespace");

    let names: Vec<String> = definitions.iter().map(|object| name(object).to_owned()).collect();
    // Definitions do not depend on each other, and each is large: not one after the other.
    apply_all(client, definitions, parallel.max(4)).await?;
    for name in names {
        established(client, &name).await?;
    }
    apply_all(client, namespaces, parallel).await?;
    apply_all(client, rest, parallel).await
}

async fn apply_all(client: &kube::Client, objects: Vec<Value>, parallel: usize) -> Result<()> {
    let mut kinds = HashMap::new();
    let mut calls = Vec::new();
    for object in objects {
        let gvk = group_version_kind(&object)?;
        if !kinds.contains_key(&gvk) {
            let found = discover(client, &gvk).await?;
            kinds.insert(gvk.clone(), found);
        }
        let (resource, capabilities) = &kinds[&gvk];
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client.clone(), resource),
            Scope::Namespaced => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
                Api::namespaced_with(client.clone(), namespace, resource)
            }
        };
        calls.push(async move {
            let params = PatchParams::apply(MANAGER).force();
            api.patch(name(&object), &params, &Patch::Apply(&object))
                .await
                .with_context(|| format!("apply {} {}", kind(&object), name(&object)))
        });
    }
    futures::stream::iter(calls).buffered(parallel.max(1)).try_for_each(|_| async { Ok(()) }).await
}

/// Looks a kind up. One whose definition has just been established may take a moment to be served.
async fn discover(client: &kube::Client, gvk: &GroupVersionKind) -> Result<(ApiResource, ApiCapabilities)> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match pinned_kind(client, gvk).await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= deadline => {
                return Err(anyhow!(error).context(format!("the server does not know {}", gvk.kind)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn established(client: &kube::Client, name: &str) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let deadline = Instant::now() + LIMIT;
    loop {
        let definition = api.get(name).await.with_context(|| format!("read definition {name}"))?;
        let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("definition {name} was not established within {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An object's kind.
pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn group_version_kind(object: &Value) -> Result<GroupVersionKind> {
    let version = object["apiVersion"].as_str().context("an object without apiVersion")?;
    if kind(object).is_empty() || name(object).is_empty() {
        bail!("an object of {version} without kind or metadata.name");
    }
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    Ok(GroupVersionKind::gvk(group, version, kind(object)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_documents_and_lists() {
        let yaml = "---\nkind: A\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n---\n";
        let kinds: Vec<_> = parse(yaml).unwrap().iter().map(|object| kind(object).to_owned()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
    }
}
