//! Controller and agents one version apart, on a real API server: a later agent is played by the test.

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::MIGNode;
use slicegate_rig::operator::GpuNode;

use crate::support::{World, job};

const LATER: &str = "gpu-later";

/// MIGNodes without a type: what a later version writes has fields that today's types do not know.
fn untyped(world: &World) -> Api<DynamicObject> {
    let resource = kube::discovery::ApiResource::erase::<MIGNode>(&());
    Api::all_with(world.client.clone(), &resource)
}

/// As the API server has it checked: a field that it does not know is an error.
fn strict() -> PatchParams {
    PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply("test").force() }
}

/// Makes a MIGNode with this spec and status.
async fn report(world: &World, name: &str, object: &Value) -> Result<()> {
    let api = untyped(world);
    let part = |part: &str| {
        let mut body =
            json!({"apiVersion": "slicegate.dev/v1alpha1", "kind": "MIGNode", "metadata": {"name": name}});
        body[part] = object[part].clone();
        body
    };
    if !object["spec"].is_null() {
        api.patch(name, &strict(), &Patch::Apply(part("spec"))).await?;
    }
    api.patch_status(name, &strict(), &Patch::Apply(part("status"))).await?;
    Ok(())
}

/// The CRD as a later version may extend it.
async fn install_later_crd(world: &World) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let mut crd = serde_json::to_value(api.get("mignodes.slicegate.dev").await?)?;
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    schema["spec"]["properties"]["appetite"] = json!({"type": "string", "description": "x"});
    let status = &mut schema["status"]["properties"];
    status["weather"] = json!({"type": "string", "description": "x"});
    let slice = &mut status["slices"]["items"]["properties"];
    slice["tint"] = json!({"type": "string", "description": "x"});
    for state in ["Parked", "Suspended"] {
        slice["state"]["enum"].as_array_mut().context("states")?.push(json!(state));
    }
    let crd: CustomResourceDefinition = serde_json::from_value(crd)?;
    api.replace("mignodes.slicegate.dev", &PostParams::default(), &crd).await?;
    Ok(())
}

fn condition() -> Result<Condition> {
    Ok(serde_json::from_value(json!({"type": "Ready", "status": "True", "reason": "Ready", "message": "",
        "lastTransitionTime": "2026-11-24T10:00:00Z"}))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_places_beside_what_a_later_agent_reports_and_takes_none_of_it_for_free() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    // Nodes without an agent of today's.
    world.rig.add_nodes(&[GpuNode::a30("gpu-of-0-1").node, GpuNode::a100(LATER).node]).await?;
    // What version 0.1 wrote is accepted, to the last field.
    let text = include_str!("../component/fixtures/v0.1/mignode.yaml");
    report(&world, "gpu-of-0-1", &serde_saphyr::from_str(text)?).await?;

    install_later_crd(&world).await?;
    let profile = |name: &str, id: u32, size: u8, starts: &[u8], count: u8| json!({"name": name, "id": id, "size": size, "starts": starts, "maxCount": count, "memoryMiB": 9728});
    let slice = |start: u8, state: &str, pod: Option<&str>| {
        let mut slice = json!({"gpu": "GPU-later", "profile": "1g.10gb", "start": start, "size": 1, "state": state,
            "since": "2026-11-24T10:00:00Z", "tint": "blue"});
        if let Some(pod) = pod {
            slice["pod"] = json!(pod);
        }
        slice
    };
    let status = json!({
        "models": [{"name": "NVIDIA A100-SXM4-80GB", "units": 8, "profiles": [
            profile("1g.10gb", 19, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
            profile("1g.10gb+sky", 77, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
        ]}],
        "gpus": [{"uuid": "GPU-later", "index": 0, "model": "NVIDIA A100-SXM4-80GB", "migMode": "Enabled", "health": "Healthy"}],
        "slices": [slice(0, "Suspended", Some("elsewhere/somebody")), slice(1, "Parked", None)],
        "weather": "fine",
        "agentVersion": "0.2.0",
        "observedGeneration": 1,
        "conditions": [condition()?],
    });
    world
        .until("the API server knows the later CRD", || async {
            report(&world, LATER, &json!({"spec": {"appetite": "more"}, "status": status})).await?;
            Ok(true)
        })
        .await?;
    world.submit(&job("default", "beside", 1, &[("1g.10gb", 1)], "0.2")).await?;
    let spec = world
        .until("it is placed on the node of the later agent", || async {
            Ok(Some(world.mig_node(LATER).await?.spec).filter(|spec| !spec.claims.is_empty()))
        })
        .await?;
    let places: Vec<u8> = spec.gpus.iter().flat_map(|gpu| &gpu.slices).map(|slice| slice.start).collect();
    assert!(!places.is_empty() && places.iter().all(|start| *start > 1), "{places:?} of what is taken");
    let kept = world.mig_node(LATER).await?;
    assert_eq!(kept.annotations().get("slicegate.dev/controller-version").map(String::as_str), Some("0.1.0"));
    let status = untyped(&world).get(LATER).await?.data["status"].clone();
    assert_eq!((&status["weather"], &status["slices"][1]["state"]), (&json!("fine"), &json!("Parked")));

    // And an agent of today makes what a spec with a field of tomorrow wants.
    let appetite = json!({"spec": {"appetite": "more"}});
    untyped(&world).patch("gpu-a30", &PatchParams::default(), &Patch::Merge(appetite)).await?;
    world.submit(&job("default", "after", 1, &[("1g.6gb", 1)], "0.2")).await?;
    world.until("a Job runs on today's agent", || world.job_done("default", "after")).await?;
    world.rig.down().await
}
