//! The make targets that users of a kubebuilder project expect.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use slicegate_rig::operator::Operator;
use slicegate_rig::{Options, Repo, Rig};

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
    assert_eq!(
        ours(&rig).await?,
        ["mignodes.slicegate.dev", "slicepolicies.slicegate.dev", "slicequotareports.slicegate.dev"]
    );
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

/// What a kustomize folder renders to.
fn rendered(repo: &Repo, folder: &str) -> Result<Vec<Value>> {
    let output = Command::new(repo.programs().join("kubectl"))
        .arg("kustomize")
        .arg(repo.root().join(folder))
        .output()?;
    ensure!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_saphyr::from_multiple(&String::from_utf8(output.stdout)?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_install_brings_one_gate_and_a_controller_that_knows_of_it() -> Result<()> {
    let repo = Repo::find()?;
    repo.build().await?;
    let operator = Operator::find()?;
    let of = |objects: &[Value], kind: &str| {
        let found = objects.iter().filter(|object| object["kind"] == kind).cloned();
        found.collect::<Vec<_>>()
    };
    let mut images = Vec::new();
    for (folder, policies, webhooks, certificates, flags) in [
        ("config/default", 1, 0, 0, vec![]),
        ("config/webhook", 0, 1, 0, vec!["--gate-webhook"]),
        (
            "config/webhook-cert-manager",
            0,
            1,
            2,
            vec!["--gate-webhook", "--webhook-cert-dir=/etc/slicegate/gate"],
        ),
    ] {
        let objects = rendered(&repo, folder)?;
        let count = |kind: &str| of(&objects, kind).len();
        // The gate, and GPU memory by either of two labels.
        assert_eq!(count("MutatingAdmissionPolicy"), 2 * policies, "{folder}");
        assert_eq!(count("MutatingAdmissionPolicyBinding"), 3 * policies, "{folder}");
        assert_eq!(count("MutatingWebhookConfiguration"), webhooks, "{folder}");
        let called = of(&objects, "MutatingWebhookConfiguration");
        let called = called.iter().filter_map(|object| object["webhooks"].as_array()).flatten().count();
        assert_eq!(called, 3 * webhooks, "{folder}");
        assert_eq!(count("Service"), webhooks, "{folder}");
        assert_eq!(count("Certificate"), certificates, "{folder}");
        // Whoever keeps the certificates needs rights to; who does not has none.
        let keeps = webhooks == 1 && certificates == 0;
        for kind in ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"] {
            let ours = of(&objects, kind);
            let found = ours.iter().any(|object| object["metadata"]["name"] == "slicegate-gate");
            assert_eq!(found, keeps, "{folder}: {kind}");
        }
        let injected = of(&objects, "MutatingWebhookConfiguration").iter().any(|object| {
            object["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
                == "slicegate-system/slicegate-gate"
        });
        assert_eq!(injected, certificates > 0, "{folder}");

        let deployments = of(&objects, "Deployment");
        let [deployment] = deployments.as_slice() else {
            bail!("{folder}: {} Deployments", deployments.len())
        };
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        images.push(container["image"].clone());
        let args: Vec<String> = serde_json::from_value(container["args"].clone())?;
        let gate: Vec<&str> = args.iter().map(String::as_str).filter(|arg| arg.contains("webhook")).collect();
        assert_eq!(gate, flags, "{folder}");
        // Arguments before --help are read, and refused if they are not known.
        let output = Command::new(operator.slicegate()).args(&args).arg("--help").output()?;
        ensure!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(images.iter().all(|image| *image == images[0]), "one place names the image: {images:?}");
    Ok(())
}
