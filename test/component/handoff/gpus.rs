//! What goes wrong on GPUs.

use std::fs;

use serde_json::json;
use slicegate::api::mig_node::Health;
use slicegate::api::mig_node::SliceState::{Failed, Idle, InUse};

use super::rig::{P1, R1, pod, starts};
use super::{Rig, on_node};

/// Two GPUs, with two slices on the first and one on the second.
async fn two_gpus(rig: &mut Rig) {
    rig.simulate(|config| config["gpus"][0]["count"] = json!(2));
    rig.agent().await;
    rig.want_on(&[&[(P1, 2), (P1, 5)], &[(P1, 0)]]);
    rig.until_state(&[2, 5], Idle).await;
    rig.until("the other GPU's slice", |rig| rig.api.resource(R1) == (14, 3)).await;
}

#[test]
fn what_is_on_a_lost_gpu_fails_and_the_other_gpu_goes_on() {
    on_node(async |mut rig: Rig| {
        two_gpus(&mut rig).await;
        let (pod, start) = rig.run("one").await;
        rig.until_state(&[start], InUse).await;
        rig.sim().lose_gpu(&rig.gpus[0]).unwrap();
        rig.until_state(&[2, 5], Failed).await;
        rig.until("the node to show what works", |rig| rig.api.resource(R1) == (14, 1)).await;
        let status = rig.api.status();
        assert_eq!(
            status.gpus.iter().map(|gpu| gpu.health).collect::<Vec<_>>(),
            [Health::Unhealthy, Health::Healthy]
        );
        assert_eq!(rig.ready().1, "SomeGPUsUnusable");
        rig.kubelet.until("one healthy device", |k| k.healthy(R1).len() == 1).await;
        let given = rig.kubelet.admit(&super::rig::pod("two")).await.unwrap();
        assert!(given[0].response.cdi_devices.iter().any(|d| d.name.contains(&rig.gpus[1])), "{given:?}");
        rig.sim().reset_gpu(&rig.gpus[0]).unwrap();
        rig.until("the pod's slice to be made again", |rig| rig.state(start) == Some(InUse)).await;
        rig.until_state(&[7 - start], Idle).await;
        rig.kubelet.end(&pod);
        rig.until_state(&[2, 5], Idle).await;
        rig.check();
    });
}

#[test]
fn a_slice_with_an_error_is_made_anew_once_its_pod_is_over() {
    on_node(async |mut rig: Rig| {
        two_gpus(&mut rig).await;
        let (pod, start) = rig.run("one").await;
        rig.until_state(&[start], InUse).await;
        let broken = rig.real_at(u32::from(start)).unwrap();
        rig.sim().xid(&rig.gpus[0], 94, Some(broken.gpu_instance_id), Some(0)).unwrap();
        rig.until_state(&[start], Failed).await;
        assert!(rig.slice(start).unwrap().message.unwrap().contains("XID 94"));
        rig.until("the node to show one less", |rig| rig.api.resource(R1) == (14, 2)).await;
        assert_eq!(rig.state(7 - start), Some(Idle));
        assert_eq!(rig.uuid_at(u32::from(start)), broken.mig_uuid().unwrap(), "destroyed under a pod");
        rig.kubelet.end(&pod);
        rig.until_state(&[start], Idle).await;
        assert_ne!(rig.uuid_at(u32::from(start)), broken.mig_uuid().unwrap());
        rig.check();
    });
}

#[test]
fn a_gpu_with_an_error_serves_nobody_until_it_is_reset() {
    on_node(async |mut rig: Rig| {
        two_gpus(&mut rig).await;
        rig.sim().xid(&rig.gpus[0], 48, None, None).unwrap();
        rig.until_state(&[2, 5], Failed).await;
        rig.until("the node to show what works", |rig| rig.api.resource(R1) == (14, 1)).await;
        assert!(rig.slice(2).unwrap().message.unwrap().contains("nvidia-smi -r -i 0"));
        rig.sim().reset_gpu(&rig.gpus[0]).unwrap();
        rig.until_state(&[2, 5], Idle).await;
        rig.until("the node to show all", |rig| rig.api.resource(R1) == (14, 3)).await;
        rig.check();
    });
}

#[test]
fn under_a_pod_that_survives_a_reset_its_slice_is_made_again_at_its_place() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let (one, _) = rig.run("one").await;
        rig.until_state(&[2], InUse).await;
        let before = rig.uuid_at(2);
        rig.sim().reset_gpu(&rig.gpus[0]).unwrap();
        rig.until("it to be made again", |rig| {
            rig.slice(2)
                .is_some_and(|slice| slice.state == InUse && slice.uuid.is_some_and(|uuid| uuid != before))
        })
        .await;
        let file = rig.cdi().join(format!("slicegate.dev-mig-{}_1g.10gb_2.json", rig.gpus[0]));
        assert!(fs::read_to_string(file).unwrap().contains(&rig.uuid_at(2)));
        rig.kubelet.until("its device to be healthy", |k| k.healthy(R1).len() == 1).await;
        assert_eq!(rig.kubelet.admit(&one).await.map(|given| starts(&given)), Ok(vec![2]));
        rig.kubelet.end(&one);
        rig.until_state(&[2], Idle).await;
        rig.check();
    });
}

#[test]
fn what_somebody_destroys_is_made_again_and_what_somebody_makes_is_left_alone() {
    on_node(async |mut rig: Rig| {
        two_gpus(&mut rig).await;
        let gone = rig.real_at(2).unwrap();
        rig.sim().destroy_instance(&rig.gpus[0], gone.gpu_instance_id).unwrap();
        rig.until("it to be made again", |rig| {
            rig.slice(2).is_some_and(|slice| slice.state == Idle && slice.uuid.as_deref() != gone.mig_uuid())
        })
        .await;
        let theirs = rig.sim().create_instance(&rig.gpus[0], P1, Some(6)).unwrap();
        rig.until("the foreign one to be told", |rig| rig.api.status().foreign.len() == 1).await;
        rig.want_on(&[&[], &[(P1, 0)]]);
        rig.until("ours to go", |rig| rig.slice(2).is_none() && rig.slice(5).is_none()).await;
        assert_eq!(rig.real_at(6).unwrap().mig_uuid(), theirs.mig_uuid());
        rig.check();
    });
}

#[test]
fn a_slice_that_is_in_use_by_others_is_destroyed_later_and_keeps_nobody_waiting() {
    on_node(async |mut rig: Rig| {
        let busy = json!([{"function": "nvmlComputeInstanceDestroy", "nth": 1, "code": 19, "times": 3}]);
        rig.simulate(|config| config["faults"] = busy);
        two_gpus(&mut rig).await;
        rig.want_on(&[&[(P1, 5), (P1, 6)], &[(P1, 0), (P1, 1)]]);
        rig.until("the refusal to be told", |rig| {
            rig.slice(2).is_some_and(|slice| {
                slice.state == Failed && slice.message.is_some_and(|m| m.contains("IN_USE (19)"))
            })
        })
        .await;
        rig.until_state(&[5, 6], Idle).await;
        assert!(rig.kubelet.admit(&pod("one")).await.is_ok());
        rig.until_gone(2).await;
        assert!(rig.real_at(2).is_none());
        assert_eq!(rig.sim().read().unwrap().calls["nvmlComputeInstanceDestroy"], 4);
        rig.check();
    });
}
