//! One kind on both sides: each request goes to the model and to the API server, and what they answer is compared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::TryStreamExt;
use kube::core::{Status, WatchEvent};
use serde_json::Value;
use slicegate_core::sim::api_server::{Change, Collection, Event, Key, Object, Refusal, Revisions, Watch};

use super::kinds::Mirrored;
use super::names::{Names, describe, described, version_of};
use super::request::{Done, Seen, Write};
use super::server::{Answer, Events, Server};

/// How long an event may take. Far longer than any does; only a lost one is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one client knows.
pub struct View<K: Mirrored> {
    /// Its last list: the model's version, and the API server's.
    pub list: Option<(u64, u64)>,
    /// The objects, as it has seen them last.
    pub objects: BTreeMap<Key, Seen<K>>,
}

/// A watch on both sides.
pub struct Watched {
    model: Watch,
    real: Events,
    client: usize,
}

/// One kind.
pub struct Mirror<K: Mirrored> {
    pub model: Collection<K>,
    server: Server,
    pub keys: Vec<Key>,
    pub views: Vec<View<K>>,
    pub watches: Vec<Watched>,
    /// What any client has ever seen.
    pub past: Vec<Seen<K>>,
    pub last: Option<Write<K>>,
}

impl<K: Mirrored> Mirror<K> {
    pub fn new(revisions: &Revisions, server: Server, names: &[String], clients: usize) -> Self {
        let view = || View { list: None, objects: BTreeMap::new() };
        Self {
            model: Collection::new(revisions),
            server,
            keys: names.iter().map(|name| Key::new(K::NAMESPACE, name)).collect(),
            views: std::iter::repeat_with(view).take(clients).collect(),
            watches: Vec::new(),
            past: Vec::new(),
            last: None,
        }
    }

    fn saw(&mut self, client: usize, seen: Seen<K>) {
        self.past.push(seen.clone());
        self.views[client].objects.insert(seen.model.meta.key.clone(), seen);
    }

    /// A write. Gives what it came to.
    pub async fn write(&mut self, names: &mut Names, client: usize, write: &Write<K>) -> Result<String> {
        let model = write.ask(&mut self.model);
        let real = self.server.write(names, write).await?;
        let came = answered(names, write, &model, &real)?;
        let gone = model.as_ref().is_ok_and(|done| done.gone);
        if let (Ok(Done { object: Some(model), .. }), Ok(real)) = (model, real)
            && write.answers()
            && !gone
        {
            self.saw(client, Seen { model, real });
            return Ok(came);
        }
        // Whatever was answered, the object is now what it is.
        let now = self.get(names, client, write.key()).await?;
        Ok(format!("{came}, and now {now}"))
    }

    /// Two writes at the same moment: what comes of them is what would come of one after the other.
    pub async fn race(&mut self, names: &mut Names, client: usize, writes: [&Write<K>; 2]) -> Result<String> {
        let [one, two] = writes;
        let (first, second) = futures::join!(self.server.write(names, one), self.server.write(names, two));
        let answers = [first?, second?];
        let mut reasons = Vec::new();
        for order in [[0, 1], [1, 0]] {
            let model = self.model.clone();
            match in_order(&self.server, model, names.clone(), writes, &answers, order).await {
                Ok((model, learnt, came)) => {
                    (self.model, *names) = (model, learnt);
                    self.get(names, client, one.key()).await?;
                    return Ok(came);
                }
                Err(error) => reasons.push(format!("{order:?}: {error:#}")),
            }
        }
        bail!("no order of the two explains the answers:\n    {}", reasons.join("\n    "))
    }

    /// Reads an object.
    pub async fn get(&mut self, names: &mut Names, client: usize, key: &Key) -> Result<String> {
        let model = self.model.get(key);
        let real = self.server.get::<K>(&key.name).await?;
        let came = found(names, model.as_deref(), &real)?;
        if let (Ok(model), Ok(real)) = (model, real) {
            self.saw(client, Seen { model, real });
        }
        Ok(came)
    }

    /// Reads all objects, as of now.
    pub async fn list(&mut self, names: &mut Names, client: usize) -> Result<String> {
        let model = self.model.list();
        let real = accepted(self.server.list::<K>(None).await?)?;
        let version = version_of(&real)?;
        let items = items(&real)?;
        ensure!(items.len() == model.items.len(), "the model has {}", listed(&model.items));
        for (model, real) in model.items.iter().zip(items) {
            names.same(model, real)?;
        }
        names.listed(model.version, version)?;
        let came = listed(&model.items);
        self.take(client, (model.version, version), model.items, items);
        Ok(came)
    }

    /// Reads all objects from the API server's cache, as of whenever that is.
    pub async fn list_cached(&mut self, names: &mut Names, client: usize, now: u64) -> Result<String> {
        let real = accepted(self.server.list::<K>(Some(0)).await?)?;
        let version = version_of(&real)?;
        let items = items(&real)?;
        let mut reasons = Vec::new();
        for as_of in names.as_of(version, now).rev() {
            let model = self.model.list_at(as_of)?;
            let mut learnt = names.clone();
            let equal = model.items.len() == items.len();
            let mut same =
                || model.items.iter().zip(items).try_for_each(|(model, real)| learnt.same(model, real));
            match if equal { same() } else { Err(anyhow!("the model has {}", listed(&model.items))) } {
                Ok(()) => {
                    *names = learnt;
                    let came = format!("as of {as_of}: {}", listed(&model.items));
                    self.take(client, (as_of, version), model.items, items);
                    return Ok(came);
                }
                Err(error) => reasons.push(format!("{as_of}: {error:#}")),
            }
        }
        bail!("a list as of {version} that never was:\n    {}", reasons.join("\n    "))
    }

    fn take(&mut self, client: usize, list: (u64, u64), models: Vec<Arc<Object<K>>>, reals: &[Value]) {
        self.views[client] = View { list: Some(list), objects: BTreeMap::new() };
        for (model, real) in models.into_iter().zip(reals) {
            self.saw(client, Seen { model, real: real.clone() });
        }
    }

    /// Begins to watch from a version on, which both sides call by names of their own.
    pub async fn watch(&mut self, client: usize, from: (u64, u64)) -> Result<String> {
        let real = self.server.watch::<K>(from.1).await;
        match (self.model.watch(from.0), real) {
            (Ok(model), Ok(real)) => {
                self.watches.push(Watched { model, real, client });
                Ok("begun".to_owned())
            }
            (Err(refusal), Ok(mut real)) => match next(&mut real).await? {
                WatchEvent::Error(status) => refused(refusal, &status),
                event => bail!("the model says {refusal}, the API server {event:?}"),
            },
            (Err(refusal), Err(error)) => match error.downcast_ref::<kube::Error>() {
                Some(kube::Error::Api(status)) => refused(refusal, status),
                _ => Err(error),
            },
            (Ok(_), Err(error)) => Err(error),
        }
    }

    /// How many events a watch has still to tell.
    pub fn behind(&self, watch: usize) -> usize {
        self.model.behind(&self.watches[watch].model)
    }

    /// Takes the next events of a watch.
    pub async fn follow(&mut self, names: &mut Names, watch: usize, events: usize) -> Result<String> {
        let mut came = Vec::new();
        for _ in 0..events {
            let watched = &mut self.watches[watch];
            let event = self.model.next(&mut watched.model).context("an event of the model")?.clone();
            let (told, object) = match next(&mut watched.real).await.with_context(|| told(&event))? {
                WatchEvent::Added(object) => (Change::Added, object),
                WatchEvent::Modified(object) => (Change::Modified, object),
                WatchEvent::Deleted(object) => (Change::Deleted, object),
                other => bail!("the model tells {}, the API server {other:?}", self::told(&event)),
            };
            let what = || {
                format!(
                    "the model tells {}, the API server {told:?} {}",
                    self::told(&event),
                    described::<K>(&object)
                )
            };
            ensure!(told == event.change, what());
            names.same(&event.object, &object).with_context(what)?;
            came.push(self::told(&event));
            let client = watched.client;
            if told == Change::Deleted {
                self.views[client].objects.remove(&event.object.meta.key);
            } else {
                self.saw(client, Seen { model: event.object, real: object });
            }
        }
        Ok(came.join("; "))
    }
}

/// Whether one order of two writes explains what was answered to them; gives what the model has then, and what was learnt.
async fn in_order<K: Mirrored>(
    server: &Server,
    mut model: Collection<K>,
    mut names: Names,
    writes: [&Write<K>; 2],
    answers: &[Answer; 2],
    order: [usize; 2],
) -> Result<(Collection<K>, Names, String)> {
    let mut came = Vec::new();
    for i in order {
        let answer = writes[i].ask(&mut model);
        came.push(answered(&mut names, writes[i], &answer, &answers[i])?);
    }
    let now = server.get::<K>(&writes[0].key().name).await?;
    found(&mut names, model.get(writes[0].key()).as_deref(), &now)?;
    Ok((model, names, came.join("; then ")))
}

async fn next(events: &mut Events) -> Result<WatchEvent<Value>> {
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await;
    event.context("the API server tells nothing")??.context("the API server has ended the watch")
}

fn told<K: Mirrored>(event: &Event<K>) -> String {
    format!("{:?} version {}: {}", event.change, event.object.meta.version, describe(&event.object))
}

fn items(list: &Value) -> Result<&Vec<Value>> {
    list["items"].as_array().context("items of a list")
}

fn listed<K: Mirrored>(objects: &[Arc<Object<K>>]) -> String {
    let objects: Vec<_> =
        objects.iter().map(|o| format!("{} version {}", o.meta.key.name, o.meta.version)).collect();
    format!("[{}]", objects.join(", "))
}

fn accepted(answer: Answer) -> Result<Value> {
    answer.map_err(|status| anyhow!("the API server says {} {}", status.reason, status.message))
}

/// Compares the answers to a write.
fn answered<K: Mirrored>(
    names: &mut Names,
    write: &Write<K>,
    model: &Result<Done<K>, Refusal>,
    real: &Answer,
) -> Result<String> {
    match (model, real) {
        (Ok(Done { object: Some(object), gone: false }), Ok(real)) if write.answers() => {
            names.same(object, real)?;
            Ok(format!("version {}", object.meta.version))
        }
        (Ok(done), Ok(_)) => Ok(if done.gone { "gone" } else { "done" }.to_owned()),
        (Err(refusal), Err(status)) => refused(*refusal, status),
        (Ok(done), Err(status)) => {
            let now = done.object.as_deref().map(describe).unwrap_or_default();
            bail!("the model does it: {now}\n    the API server says {} {}", status.code, status.message)
        }
        (Err(refusal), Ok(real)) => {
            bail!(
                "the model says {} {refusal}\n    the API server does it: {}",
                refusal.code(),
                described::<K>(real)
            )
        }
    }
}

/// Compares the answers to a read.
fn found<K: Mirrored>(
    names: &mut Names,
    model: Result<&Object<K>, &Refusal>,
    real: &Answer,
) -> Result<String> {
    match (model, real) {
        (Ok(object), Ok(real)) => {
            names.same(object, real)?;
            Ok(format!("version {}", object.meta.version))
        }
        (Err(refusal), Err(status)) => refused(*refusal, status),
        (Ok(object), Err(status)) => {
            bail!(
                "the model has {}\n    the API server says {} {}",
                describe(object),
                status.code,
                status.message
            )
        }
        (Err(refusal), Ok(real)) => {
            bail!(
                "the model says {} {refusal}\n    the API server has {}",
                refusal.code(),
                described::<K>(real)
            )
        }
    }
}

fn refused(model: Refusal, real: &Status) -> Result<String> {
    let exists = real.reason == "AlreadyExists";
    let same = model.code() == real.code && (model == Refusal::AlreadyExists) == exists;
    let (code, reason, message) = (real.code, &real.reason, &real.message);
    ensure!(
        same,
        "the model says {} {model}\n    the API server says {code} {reason}: {message}",
        model.code()
    );
    Ok(format!("{} {model}", model.code()))
}
