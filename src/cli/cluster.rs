//! All that the controller would know of the cluster, read once: whoever asks is told what the controller itself would decide.

use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use slicegate_core::time::Timestamp;

use super::Error;
use crate::api::kueue;
use crate::controller::index::{Change, Index, Update};

/// Reads the cluster. Returns the Workloads, too, which the index keeps to itself where they are not Slicegate's.
pub async fn read(client: &Client, now: Timestamp) -> Result<(Index, Vec<kueue::Workload>), Error> {
    let mut index = Index::default();
    let mut take_in = |update| index.apply(now, update);
    take_in(Update::Check(Change::Reset(list(client).await?)));
    take_in(Update::Policy(Change::Reset(list(client).await?)));
    take_in(Update::Flavor(Change::Reset(list(client).await?)));
    take_in(Update::Queue(Change::Reset(list(client).await?)));
    take_in(Update::LocalQueue(Change::Reset(list(client).await?)));
    take_in(Update::Cohort(Change::Reset(list(client).await?)));
    take_in(Update::Quota(Change::Reset(list(client).await?)));
    take_in(Update::LimitRange(Change::Reset(list(client).await?)));
    take_in(Update::Namespace(Change::Reset(list(client).await?)));
    take_in(Update::PriorityClass(Change::Reset(list(client).await?)));
    take_in(Update::Node(Change::Reset(list(client).await?)));
    take_in(Update::MigNode(Change::Reset(list(client).await?)));
    // Last, so that no claim is without its workload, and no pod without its claim.
    let workloads: Vec<kueue::Workload> = list(client).await?;
    take_in(Update::Workload(Change::Reset(workloads.clone())));
    take_in(Update::Pod(Change::Reset(list(client).await?)));
    Ok((index, workloads))
}

async fn list<K>(client: &Client) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    match Api::<K>::all(client.clone()).list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(error) => {
            let source = Box::new(error);
            Err(match &*source {
                kube::Error::Api(status) if status.code == 404 => {
                    Error::NotServed { kinds: K::plural(&()).into_owned(), group: K::group(&()).into_owned() }
                }
                _ => Error::List { kinds: K::plural(&()).into_owned(), source },
            })
        }
    }
}
