//! Watches that keep a shared state up to date.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// Watches that end with this value.
pub struct Watches(pub Vec<JoinHandle<()>>);

impl Drop for Watches {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Follows the objects of a kind.
pub fn watch<K, S>(
    api: Api<K>,
    state: Arc<Mutex<S>>,
    applied: fn(&mut S, &K),
    deleted: fn(&mut S, &K),
) -> JoinHandle<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    S: Send + 'static,
{
    tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    applied(&mut state, &object);
                }
                Ok(watcher::Event::Delete(object)) => deleted(&mut state, &object),
                _ => {}
            }
        }
    })
}
