//! What Allocate says, in its several ways and when it cannot.

use std::fs;
use std::time::Duration;

use slicegate::agent::cdi;
use slicegate::api::mig_node::SliceState::{Creating, Idle};
use slicegate_kubelet_api::device_plugin::{AllocateRequest, ContainerAllocateRequest, DevicePluginClient};
use slicegate_kubelet_api::socket;

use super::rig::{P1, R1, pod};
use super::{Rig, on_node};
use crate::kubelet::Pod;

/// Asks the plugin as a kubelet that has gone astray.
async fn ask(rig: &Rig, ids: &[&str]) -> Result<usize, String> {
    let path = rig.kubelet.device_plugins().join("slicegate-1g.10gb.sock");
    let mut plugin = DevicePluginClient::new(socket::channel(&path, Duration::from_secs(5)).unwrap());
    let devices = ids.iter().map(|&id| id.to_owned()).collect();
    let request =
        AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids: devices }] };
    let answer = plugin.allocate(request).await.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().container_responses[0].cdi_devices.len())
}

#[test]
fn senseless_requests_are_refused_with_what_is_wrong_and_the_agent_lives_on() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let said = ask(&rig, &["1g.10gb/99"]).await.unwrap_err();
        assert!(said.contains("this node has no device 1g.10gb/99"), "{said}");
        for id in ["gpu-0", "1g.10gb/01", "", "1g.10gb/"] {
            let said = ask(&rig, &[id]).await.unwrap_err();
            assert!(said.contains("is no device of Slicegate's"), "{said}");
        }
        let said = ask(&rig, &["1g.10gb/0", "1g.10gb/1"]).await.unwrap_err();
        assert!(said.contains("no slice of 1g.10gb is free on this node"), "{said}");
        assert_eq!(rig.bindings(), [], "half an answer");
        assert_eq!(rig.run("one").await.1, 2);
        // An unhealthy one, with no slice left.
        let said = ask(&rig, &["1g.10gb/5"]).await.unwrap_err();
        assert!(said.contains("no slice of 1g.10gb is free on this node"), "{said}");
        rig.check();
    });
}

#[test]
fn an_unhealthy_device_gets_a_slice_that_is_free_all_the_same() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        // The kubelet's choice may be older than the list.
        assert_eq!(ask(&rig, &["1g.10gb/6"]).await, Ok(2));
        assert_eq!(rig.bindings(), [("1g.10gb/6".to_owned(), 2)]);
        rig.check();
    });
}

#[test]
fn without_its_cdi_file_a_slice_is_not_offered_and_the_others_are() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        fs::rename(rig.cdi(), rig.folder.join("aside")).unwrap();
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until("the message", |rig| {
            rig.slice(5).is_some_and(|slice| {
                slice.state == Creating
                    && slice.message.is_some_and(|m| m.contains("cdi") && m.contains("cannot"))
            })
        })
        .await;
        rig.looks(3).await;
        assert_eq!((rig.state(2), rig.kubelet.healthy(R1).len()), (Some(Idle), 1));
        fs::rename(rig.folder.join("aside"), rig.cdi()).unwrap();
        rig.until_state(&[2, 5], Idle).await;
        assert_eq!(rig.kubelet.healthy(R1).len(), 2);
        rig.check();
    });
}

#[test]
fn a_cdi_file_that_somebody_removes_is_written_again() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let file = rig.cdi().join(format!("{}{}_1g.10gb_2.json", cdi::PREFIX, rig.gpus[0]));
        fs::remove_file(&file).unwrap();
        rig.kubelet.admit(&pod("one")).await.unwrap();
        rig.kubelet.until("the file to be back", |_| file.exists()).await;
        rig.check();
    });
}

async fn two_slices(rig: &mut Rig, strategy: &str) -> (Vec<String>, crate::kubelet::Given) {
    rig.words = vec![format!("--device-list-strategy={strategy}")];
    rig.agent().await;
    rig.want(&[(P1, 2), (P1, 5)]);
    rig.until_state(&[2, 5], Idle).await;
    let mut given = rig.kubelet.admit(&Pod::new("team", "one").app("main", R1, 2)).await.unwrap();
    let uuids = [2, 5].map(|start| rig.uuid_at(start)).to_vec();
    (uuids, given.remove(0))
}

#[test]
fn with_envvar_the_variable_has_the_uuids() {
    on_node(async |mut rig: Rig| {
        let (mut uuids, given) = two_slices(&mut rig, "envvar").await;
        let mut told: Vec<&str> = given.response.envs["NVIDIA_VISIBLE_DEVICES"].split(',').collect();
        told.sort_unstable();
        uuids.sort_unstable();
        assert_eq!(told, uuids);
        assert!(given.response.cdi_devices.is_empty() && given.response.annotations.is_empty());
    });
}

#[test]
fn with_cdi_annotations_an_annotation_has_the_cdi_names() {
    on_node(async |mut rig: Rig| {
        let (_, given) = two_slices(&mut rig, "cdi-annotations").await;
        let [(key, names)] = given.response.annotations.iter().collect::<Vec<_>>()[..] else {
            panic!("{given:?}");
        };
        assert!(key.starts_with("cdi.k8s.io/slicegate.dev-mig_"), "{key}");
        let mut starts: Vec<u8> = names.split(',').filter_map(cdi::parse).map(|place| place.start).collect();
        starts.sort_unstable();
        assert_eq!(starts, [2, 5], "{names}");
        assert!(names.split(',').any(|name| name == cdi::DRIVER), "{names}");
        assert!(given.response.cdi_devices.is_empty() && given.response.envs.is_empty());
    });
}
