use slicegate::api::mig_node::SliceState::{Idle, InUse};
use tokio::net::UnixStream;

use super::rig::{P1, R1, starts};
use super::{Rig, on_node};
use crate::api_server::Kind;

#[test]
fn an_agent_that_ends_says_so_in_its_mignode_and_nothing_to_the_kubelet() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        let (one, start) = rig.run("one").await;
        rig.until_state(&[start], InUse).await;
        let lists = rig.kubelet.record().lists.len();
        rig.stop_agent().await;
        assert_eq!(rig.ready().1, "AgentStopped");
        assert_eq!((rig.state(start), rig.state(7 - start)), (Some(InUse), Some(Idle)));
        rig.kubelet.until("the end to be noticed", |k| k.registered().is_empty()).await;
        assert_eq!(rig.kubelet.record().lists.len(), lists, "a farewell list");
        assert_eq!(rig.kubelet.capacity()[R1], (7, 0), "the kubelet keeps the devices in mind");
        let socket = rig.kubelet.device_plugins().join("slicegate-1g.10gb.sock");
        assert!(UnixStream::connect(socket).await.is_err());
        assert_eq!(rig.sim().sessions().unwrap(), 0, "NVML is held");
        assert_eq!(rig.real().len(), 2);

        rig.agent().await;
        rig.until_state(&[start], InUse).await;
        rig.until_state(&[7 - start], Idle).await;
        assert_eq!(rig.ready().1, "Ready");
        assert_eq!(rig.kubelet.admit(&one).await.map(|given| starts(&given)), Ok(vec![start]));
        rig.check();
    });
}

#[test]
fn an_agent_whose_node_does_not_exist_gives_up_and_says_why() {
    on_node(async |mut rig: Rig| {
        rig.api.remove(Kind::Node);
        rig.start_agent();
        let error = rig.agent_error().await;
        assert!(error.contains("node \"node-1\" does not exist in this cluster"), "{error}");
    });
}
