//! What is asked for next. All of it follows from the dice and from what the model has answered so far.

use std::sync::Arc;

use slicegate_core::sim::api_server::{Draft, Guard, Key, Marks, Object};

use super::dice::Dice;
use super::kinds::Mirrored;
use super::mirror::Mirror;
use super::request::{Seen, Write};

/// A request of one client.
pub enum Request<K: Mirrored> {
    Write(Write<K>),
    /// Two writes of the same object at the same moment.
    Race(Write<K>, Write<K>),
    Get(Key),
    List,
    ListCached,
    /// From a version on, which both sides call by names of their own.
    Watch((u64, u64)),
    /// The next events of a watch.
    Follow(usize, usize),
}

const FINALIZERS: [&[&str]; 4] =
    [&[], &["slicegate.dev/a"], &["slicegate.dev/b"], &["slicegate.dev/a", "slicegate.dev/b"]];

/// Watches of one kind that are open at once.
const WATCHES: usize = 3;

/// The next request of a client.
pub fn request<K: Mirrored>(
    dice: &mut Dice,
    mirror: &Mirror<K>,
    client: usize,
    fresh: &mut u32,
) -> Request<K> {
    match dice.below(100) {
        0..6 => Request::Get(mirror.keys[dice.index(mirror.keys.len())].clone()),
        6..11 => Request::List,
        11..16 => Request::ListCached,
        16..26 if mirror.watches.len() < WATCHES => match beginning(dice, mirror, client) {
            Some(version) => Request::Watch(version),
            None => Request::List,
        },
        16..34 if !mirror.watches.is_empty() => {
            let watch = dice.index(mirror.watches.len());
            let behind = mirror.behind(watch);
            Request::Follow(watch, if dice.percent(50) { behind } else { dice.index(behind + 1) })
        }
        34..42 => match &mirror.last {
            Some(last) => Request::Write(last.clone()),
            None => Request::List,
        },
        42..46 => {
            let one = write(dice, mirror, client, fresh);
            match concurrent(dice, mirror, one.key(), fresh) {
                Some(two) if raceable(&one) && raceable(&two) => Request::Race(one, two),
                _ => Request::Write(one),
            }
        }
        _ => Request::Write(write(dice, mirror, client, fresh)),
    }
}

/// A version that a watch may begin at: of the client's list, or of an object.
fn beginning<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>, client: usize) -> Option<(u64, u64)> {
    let list = mirror.views[client].list;
    if list.is_some() && dice.percent(70) {
        return list;
    }
    let seen = any(dice, &mirror.past)?;
    let version = super::names::version_of(&seen.real).ok()?;
    Some((seen.model.meta.version, version))
}

fn any<'a, T>(dice: &mut Dice, from: &'a [T]) -> Option<&'a T> {
    if from.is_empty() { None } else { Some(&from[dice.index(from.len())]) }
}

/// Whether a write may run beside another. Those of a pod that the API server might find fault with, had the other come first,
/// are left out, and its deletion, which is two changes with time in between.
fn raceable<K: Mirrored>(write: &Write<K>) -> bool {
    let blind = matches!(write, Write::Patch(_, guard, _) if !versioned(guard));
    let other = matches!(
        write,
        Write::Bind(..) | Write::Replace(_, false, _) | Write::Delete(..) | Write::DeleteNow(..)
    );
    !K::BUILT_IN || !(blind || other)
}

fn versioned(guard: &Guard) -> bool {
    matches!(guard, Guard::Body { version: Some(_), .. })
}

/// A write to the same object, as right as can be.
fn concurrent<K: Mirrored>(
    dice: &mut Dice,
    mirror: &Mirror<K>,
    key: &Key,
    fresh: &mut u32,
) -> Option<Write<K>> {
    let now = mirror.model.get(key).ok()?;
    let guard = Guard::version(now.meta.version);
    *fresh += 1;
    Some(match dice.below(4) {
        0 => Write::Delete(key.clone(), guard),
        1 => Write::PatchStatus(key.clone(), guard, K::report(dice, &now.status, *fresh)),
        2 => Write::Mark(key.clone(), Guard::Any, *fresh),
        _ => Write::Patch(key.clone(), guard, K::next(dice, &now.spec)),
    })
}

fn write<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>, client: usize, fresh: &mut u32) -> Write<K> {
    let key = mirror.keys[dice.index(mirror.keys.len())].clone();
    *fresh += 1;
    let Some(now) = mirror.model.get(&key).ok() else {
        return absent(dice, mirror, client, key, *fresh);
    };
    let seen = mirror.views[client].objects.get(&key);
    let guard = guard(dice, mirror, client, &now);
    match dice.below(100) {
        0..4 => create(dice, key),
        4..14 => match seen {
            Some(seen) => replace(dice, seen, &now),
            None => Write::Mark(key, guard, *fresh),
        },
        14..24 => match seen {
            Some(seen) => {
                let status = K::report(dice, &seen.model.status, *fresh);
                // Through `status` of a built-in kind, old labels would come back, too.
                Write::ReplaceStatus(seen.clone(), K::BUILT_IN || dice.percent(80), status)
            }
            None => Write::PatchStatus(key, guard, K::report(dice, &now.status, *fresh)),
        },
        24..40 => Write::Patch(key, guard, K::next(dice, &now.spec)),
        40..52 => Write::PatchStatus(key, guard, K::report(dice, &now.status, *fresh)),
        52..64 if !K::BUILT_IN => {
            let guard = tests(dice, mirror, &now);
            Write::Test(key, guard, K::next(dice, &now.spec))
        }
        64..74 => match K::entry(dice, *fresh) {
            Some(entry) => Write::Apply(key, guard, entry),
            None => Write::Patch(key, guard, K::next(dice, &now.spec)),
        },
        74..80 => Write::Mark(key, guard, *fresh),
        80..86 => Write::Finalizers(key, guard, dice.pick(&FINALIZERS).to_vec()),
        86..90 if K::bound(&now.spec).is_some() && !now.meta.deleting => Write::Bind(key, guard),
        90..97 => Write::Delete(key, guard),
        _ => Write::DeleteNow(key, guard),
    }
}

/// A write where there is no object, or no longer.
fn absent<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>, client: usize, key: Key, fresh: u32) -> Write<K> {
    let guard = Guard::Any;
    let old = mirror.views[client].objects.get(&key);
    match (dice.below(100), old) {
        (0..70, _) => create(dice, key),
        (70..76, Some(old)) => Write::Replace(old.clone(), dice.percent(50), old.model.spec.clone()),
        (76..82, Some(old)) => Write::ReplaceStatus(old.clone(), true, old.model.status.clone()),
        (82..88, Some(old)) => Write::Mark(key, Guard::uid(&old.model.meta.uid), fresh),
        (88..94, Some(old)) => Write::PatchStatus(key, guard, K::report(dice, &old.model.status, fresh)),
        _ => Write::Delete(key, guard),
    }
}

fn create<K: Mirrored>(dice: &mut Dice, key: Key) -> Write<K> {
    let finalizers = if dice.percent(40) { dice.pick(&FINALIZERS) } else { &[] };
    let finalizers = finalizers.iter().map(|name| Arc::from(*name)).collect();
    let marks = Marks { finalizers, ..Marks::default() };
    Write::Create(Draft { key, marks, spec: K::first(dice) })
}

fn replace<K: Mirrored>(dice: &mut Dice, seen: &Seen<K>, now: &Object<K>) -> Write<K> {
    let blind = dice.percent(20) && (!K::BUILT_IN || seen.model.spec == now.spec);
    Write::Replace(seen.clone(), !blind, K::next(dice, &seen.model.spec))
}

/// What a write takes for granted: right, out of date, or of another object.
fn guard<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>, client: usize, now: &Object<K>) -> Guard {
    let seen = mirror.views[client].objects.get(&now.meta.key).map_or(now, |seen| &seen.model);
    let past = mirror.past.iter().filter(|past| past.model.meta.key == now.meta.key).collect::<Vec<_>>();
    let past = any(dice, &past).map_or(seen, |past| &past.model);
    let both =
        |of: &Object<K>| Guard::Body { uid: Some(of.meta.uid.clone()), version: Some(of.meta.version) };
    match dice.below(100) {
        0..35 => Guard::Any,
        35..50 => Guard::version(seen.meta.version),
        50..60 => both(seen),
        60..75 => Guard::version(now.meta.version),
        75..82 => Guard::uid(&now.meta.uid),
        82..90 => Guard::version(past.meta.version),
        90..95 => both(past),
        95..98 => Guard::uid(&past.meta.uid),
        _ => Guard::uid(&"nobody".into()),
    }
}

fn tests<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>, now: &Object<K>) -> Guard {
    let past = mirror.past.iter().filter(|past| past.model.meta.key == now.meta.key).collect::<Vec<_>>();
    let of = match any(dice, &past) {
        Some(past) if dice.percent(40) => &past.model.meta,
        _ => &now.meta,
    };
    Guard::Test { uid: Some(of.uid.clone()), generation: dice.percent(90).then_some(of.generation) }
}

/// A write that changes something, whatever there is.
pub fn last<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>, fresh: &mut u32) -> Write<K> {
    let key = mirror.keys[0].clone();
    *fresh += 1;
    match mirror.model.get(&key) {
        Ok(_) => Write::Mark(key, Guard::Any, *fresh),
        Err(_) => create(dice, key),
    }
}

/// Versions that a watch might begin at, the last one among them.
pub fn versions<K: Mirrored>(dice: &mut Dice, mirror: &Mirror<K>) -> Vec<(u64, u64)> {
    let past = [any(dice, &mirror.past), mirror.past.last()];
    let both = |seen: &Seen<K>| Some((seen.model.meta.version, super::names::version_of(&seen.real).ok()?));
    past.into_iter().flatten().filter_map(both).collect()
}
