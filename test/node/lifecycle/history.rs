//! What the Node showed of a resource, and by whose hand.

use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::JoinHandle;

use crate::support::{NODE, World};

/// Allocatable, and the field manager that changed it to that.
type Entry = (u32, String);

/// Follows a resource of the real Node.
pub struct History {
    entries: Arc<Mutex<Vec<Entry>>>,
    task: JoinHandle<()>,
}

impl History {
    /// Begins now.
    pub async fn of(world: &World<'_>, resource: &str) -> Result<Self> {
        let api: Api<Node> = Api::all(world.client.clone());
        let resource = resource.to_owned();
        let first = entry(&api.get(NODE).await?, &resource);
        let entries = Arc::new(Mutex::new(vec![first]));
        let noted = entries.clone();
        let task = tokio::spawn(async move {
            let config = watcher::Config::default().fields(&format!("metadata.name={NODE}"));
            let mut nodes = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
            loop {
                if let Ok(Some(node)) = nodes.try_next().await {
                    let (new, mut noted) = (entry(&node, &resource), noted.lock().unwrap());
                    if noted.last() != Some(&new) {
                        noted.push(new);
                    }
                }
            }
        });
        Ok(Self { entries, task })
    }

    /// The latest.
    pub fn last(&self) -> Entry {
        self.entries.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// Whether it was ever at this number.
    pub fn was(&self, count: u32) -> bool {
        self.entries.lock().unwrap().iter().any(|(seen, _)| *seen == count)
    }

    /// Ends, and checks that whatever came back came by the agent's hand, before the kubelet's own update had it.
    pub fn rose_by_the_agent(self) -> Result<()> {
        self.task.abort();
        let entries = self.entries.lock().unwrap();
        let late = entries.windows(2).find(|pair| pair[0].0 < pair[1].0 && pair[1].1 != "slicegate-agent");
        ensure!(late.is_none(), "the agent was too late for {late:?}: {entries:?}");
        Ok(())
    }
}

fn entry(node: &Node, resource: &str) -> Entry {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get(resource));
    let count = allocatable.and_then(|quantity| quantity.0.parse().ok()).unwrap_or(0);
    let owns = |fields: &serde_json::Value| {
        fields["f:status"]["f:allocatable"].get(format!("f:{resource}")).is_some()
    };
    let owner = node.managed_fields().iter().find(|m| m.fields_v1.as_ref().is_some_and(|f| owns(&f.0)));
    (count, owner.and_then(|m| m.manager.clone()).unwrap_or_default())
}
