//! The make targets that users of a kubebuilder project expect.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::ListParams;
use slicegate_rig::{Options, Rig};

/// Runs a target of the Makefile against the rig.
fn make(rig: &Rig, words: &[&str]) -> Result<()> {
    let kubectl = rig.kubectl_path();
    let folder = kubectl.parent().context("the folder of kubectl")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    let output = Command::new("make")
        .current_dir(rig.repo().root())
        .args(words)
        .env("PATH", path)
        .env("KUBECONFIG", rig.kubeconfig())
        .output()?;
    ensure!(
        output.status.success(),
        "make {words:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn ours(rig: &Rig) -> Result<Vec<String>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(rig.client().await?);
    let names =
        definitions.list(&ListParams::default()).await?.items.into_iter().filter_map(|d| d.metadata.name);
    Ok(names.filter(|name| name.ends_with(".slicegate.dev")).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn make_installs_deploys_and_takes_it_all_away_again() -> Result<()> {
    let rig = Rig::up(Options::temporary()?).await?;
    make(&rig, &["install"])?;
    assert_eq!(ours(&rig).await?, ["mignodes.slicegate.dev", "slicepolicies.slicegate.dev"]);
    make(&rig, &["deploy", "IMG=registry.example.com/slicegate:0.1.0"])?;
    let client = rig.client().await?;
    let controller: Deployment =
        Api::namespaced(client.clone(), "slicegate-system").get("slicegate-controller").await?;
    let agent: DaemonSet = Api::namespaced(client.clone(), "slicegate-system").get("slicegate-agent").await?;
    let pods = [controller.spec.map(|s| s.template), agent.spec.map(|s| s.template)];
    for pod in pods {
        let containers = pod.and_then(|pod| pod.spec).context("a pod template")?.containers;
        assert_eq!(containers[0].image.as_deref(), Some("registry.example.com/slicegate:0.1.0"));
    }
    make(&rig, &["undeploy"])?;
    make(&rig, &["uninstall"])?;
    assert_eq!(ours(&rig).await?, Vec::<String>::new());
    let left = rig
        .kubectl(["get", "clusterroles,clusterrolebindings,validatingadmissionpolicies", "-o", "name"])
        .await?;
    assert!(!left.contains("slicegate"), "{left}");
    rig.down().await
}
