//! The watches that feed the index.

use std::fmt::Debug;

use futures::TryStreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::index::Change;

/// Follows all objects of a kind for as long as somebody listens. An object that cannot be read is left out with a warning:
/// nobody else suffers from it.
pub async fn follow<K, U>(client: Client, wrap: fn(Change<K>) -> U, updates: mpsc::Sender<U>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = K::kind(&());
    let api: Api<DeserializeGuard<K>> = Api::all(client);
    // A consistent list: from a watch cache that is behind, pods would be missing that a controller before this one sent, and
    // claims that they run on would count as surplus.
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(stream);
    let mut listed: Vec<K> = Vec::new();
    loop {
        let change = match events.try_next().await {
            Ok(None) => return,
            Err(error) => {
                warn!(%kind, %error, "watch interrupted; trying again");
                continue;
            }
            Ok(Some(watcher::Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(watcher::Event::InitApply(object))) => {
                listed.extend(readable(object));
                continue;
            }
            Ok(Some(watcher::Event::InitDone)) => {
                debug!(%kind, objects = listed.len(), "watch established");
                Some(Change::Reset(std::mem::take(&mut listed)))
            }
            Ok(Some(watcher::Event::Apply(object))) => readable(object).map(Change::Apply),
            Ok(Some(watcher::Event::Delete(object))) => readable(object).map(Change::Delete),
        };
        if let Some(change) = change
            && updates.send(wrap(change)).await.is_err()
        {
            return;
        }
    }
}

fn readable<K: Resource<DynamicType = ()> + ResourceExt>(object: DeserializeGuard<K>) -> Option<K> {
    match object.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            Some(object)
        }
        Err(error) => {
            let name = error.metadata.name.unwrap_or_default();
            warn!(kind = %K::kind(&()), name, error = %error.error, "object left out: it cannot be read");
            None
        }
    }
}
