use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Lamp;

impl Kind for Lamp {
    type Spec = u32;
    type Status = u32;
    const NAME: &'static str = "Lamp";
}

/// Kept as Pods are.
#[derive(Clone, Debug, PartialEq)]
struct Guest;

impl Kind for Guest {
    type Spec = bool;
    type Status = bool;
    const NAME: &'static str = "Guest";
    const UNCONDITIONAL_UPDATE: bool = true;
    const GRACEFUL: bool = true;

    fn lingers(object: &Object<Self>) -> bool {
        object.spec && !object.status
    }
}

fn lamps() -> (Collection<Lamp>, Arc<Object<Lamp>>) {
    let mut lamps = Collection::new(&Revisions::default());
    let lamp = lamps.create(Draft::new("", "hall", 1)).unwrap();
    (lamps, lamp)
}

fn guest(here: bool) -> (Collection<Guest>, Key) {
    let mut guests = Collection::new(&Revisions::default());
    let key = guests.create(Draft::new("house", "anna", here)).unwrap().meta.key.clone();
    (guests, key)
}

fn told<K: Kind>(collection: &Collection<K>, watch: &mut Watch) -> Vec<(Change, u64)> {
    std::iter::from_fn(|| collection.next(watch).map(|e| (e.change, e.object.meta.version))).collect()
}

#[test]
fn one_count_of_revisions_goes_over_all_kinds() {
    let revisions = Revisions::default();
    let (mut lamps, mut guests) = (Collection::<Lamp>::new(&revisions), Collection::<Guest>::new(&revisions));
    let hall = lamps.create(Draft::new("", "hall", 1)).unwrap();
    let anna = guests.create(Draft::new("house", "anna", true)).unwrap();
    let yard = lamps.create(Draft::new("", "yard", 1)).unwrap();
    assert_eq!([hall.meta.version, anna.meta.version, yard.meta.version], [1, 2, 3]);
    assert_eq!((lamps.list().version, guests.list().version), (3, 3));
    assert_eq!(lamps.create(Draft::new("", "yard", 2)), Err(Refusal::AlreadyExists));
}

#[test]
fn the_generation_grows_with_spec_alone() {
    let (mut lamps, lamp) = lamps();
    let key = &lamp.meta.key;
    let label = |marks: &mut Marks, _: &mut u32| {
        marks.labels.insert("room".into(), "hall".into());
    };
    let labelled = lamps.patch(key, &Guard::Any, label).unwrap();
    let reported = lamps.patch_status(key, &Guard::Any, |status| *status = 7).unwrap();
    assert_eq!((labelled.meta.generation, reported.meta.generation), (1, 1));
    let dimmed = lamps.patch(key, &Guard::Any, |_, spec| *spec = 2).unwrap();
    assert_eq!((dimmed.meta.generation, dimmed.meta.version, dimmed.status), (2, 4, 7));
}

#[test]
fn a_write_that_changes_nothing_tells_nobody() {
    let (mut lamps, lamp) = lamps();
    let mut watch = lamps.watch(lamp.meta.version).unwrap();
    assert_eq!(lamps.patch(&lamp.meta.key, &Guard::Any, |_, spec| *spec = 1), Ok(lamp.clone()));
    assert_eq!(lamps.replace(&lamp), Ok(lamp));
    assert_eq!(told(&lamps, &mut watch), []);
    assert_eq!(lamps.requests(), Requests { written: 1, idle: 2, refused: 0 });
}

#[test]
fn each_part_is_written_through_its_own_door() {
    let (mut lamps, lamp) = lamps();
    let both = Object { spec: 5, status: 9, ..(*lamp).clone() };
    let replaced = lamps.replace(&both).unwrap();
    assert_eq!((replaced.spec, replaced.status), (5, 0));
    let both = Object { spec: 6, status: 9, ..(*replaced).clone() };
    let reported = lamps.replace_status(&both).unwrap();
    assert_eq!((reported.spec, reported.status), (5, 9));
}

#[test]
fn a_write_is_refused_when_its_precondition_no_longer_holds() {
    let (mut lamps, lamp) = lamps();
    let key = &lamp.meta.key;
    lamps.patch_status(key, &Guard::Any, |status| *status = 1).unwrap();
    let other = || Some("another".into());
    let cases = [
        (Guard::version(lamp.meta.version), Err(Refusal::Conflict)),
        (Guard::Body { uid: other(), version: None }, Err(Refusal::Invalid)),
        (Guard::Body { uid: other(), version: Some(lamp.meta.version) }, Err(Refusal::Conflict)),
        (Guard::Test { uid: other(), generation: Some(1) }, Err(Refusal::Invalid)),
        (Guard::Test { uid: None, generation: Some(2) }, Err(Refusal::Invalid)),
        // Another writer of status does not stand in the way of one of spec.
        (Guard::Test { uid: Some(lamp.meta.uid.clone()), generation: Some(1) }, Ok(())),
    ];
    for (guard, expected) in cases {
        assert_eq!(lamps.patch(key, &guard, |_, spec| *spec = 3).map(|_| ()), expected, "{guard:?}");
    }
    assert_eq!(lamps.replace(&lamp), Err(Refusal::Conflict));
    assert_eq!(lamps.delete(key, &Guard::uid(&"another".into())), Err(Refusal::Conflict));
    assert_eq!(lamps.delete(key, &Guard::version(lamp.meta.version)), Err(Refusal::Conflict));
    assert_eq!(lamps.get(&Key::new("", "yard")), Err(Refusal::NotFound));
    assert_eq!(lamps.patch(&Key::new("", "yard"), &Guard::Any, |_, _| ()), Err(Refusal::NotFound));
}

#[test]
fn the_status_of_a_custom_resource_goes_to_whoever_has_the_name() {
    let (mut lamps, lamp) = lamps();
    let (other, stale) = (Guard::uid(&"another".into()), Guard::version(lamp.meta.version));
    assert_eq!(lamps.patch_status(&lamp.meta.key, &other, |status| *status = 1).unwrap().status, 1);
    assert_eq!(lamps.patch_status(&lamp.meta.key, &stale, |status| *status = 2), Err(Refusal::Conflict));

    let (mut guests, key) = guest(true);
    assert_eq!(guests.patch_status(&key, &other, |status| *status = true), Err(Refusal::Invalid));
}

#[test]
fn only_some_kinds_are_replaced_without_a_version() {
    let (mut lamps, lamp) = lamps();
    let mut blind = (*lamp).clone();
    (blind.meta.version, blind.meta.uid, blind.spec) = (0, "".into(), 8);
    assert_eq!(lamps.replace(&blind), Err(Refusal::Invalid));

    let (mut guests, key) = guest(false);
    let mut blind = (*guests.get(&key).unwrap()).clone();
    (blind.meta.version, blind.spec) = (0, true);
    assert!(guests.replace(&blind).unwrap().spec);
}

#[test]
fn what_has_finalizers_goes_when_the_last_one_does() {
    let (mut lamps, _) = lamps();
    let finalizers: BTreeSet<Arc<str>> = ["a".into(), "b".into()].into();
    let marks = Marks { finalizers, ..Marks::default() };
    let lamp = lamps.create(Draft { marks, ..Draft::new("", "yard", 1) }).unwrap();
    let key = &lamp.meta.key;
    let mut watch = lamps.watch(lamp.meta.version).unwrap();

    let leaving = lamps.delete(key, &Guard::uid(&lamp.meta.uid)).unwrap().unwrap();
    assert!(leaving.meta.deleting);
    assert_eq!(leaving.meta.generation, 2);
    assert_eq!(lamps.delete(key, &Guard::Any).unwrap(), Some(leaving));
    let late = lamps.patch(key, &Guard::Any, |marks, _| {
        marks.finalizers.insert("c".into());
    });
    assert_eq!(late, Err(Refusal::Invalid));
    for finalizer in ["a", "b"] {
        lamps.patch(key, &Guard::Any, |marks, _| marks.finalizers.retain(|f| **f != *finalizer)).unwrap();
    }
    assert_eq!(lamps.get(key), Err(Refusal::NotFound));
    assert_eq!(
        told(&lamps, &mut watch),
        [(Change::Modified, 3), (Change::Modified, 4), (Change::Deleted, 5)]
    );

    let again = lamps.create(Draft::new("", "yard", 1)).unwrap();
    assert_ne!(again.meta.uid, lamp.meta.uid);
}

#[test]
fn a_pod_that_runs_stays_until_its_kubelet_lets_it_go() {
    let (mut guests, key) = guest(true);
    assert!(guests.delete(&key, &Guard::Any).unwrap().unwrap().meta.deleting);
    // That it is over by itself does not end it: its kubelet still has the last word.
    guests.patch_status(&key, &Guard::Any, |over| *over = true).unwrap();
    assert!(guests.delete(&key, &Guard::Any).unwrap().is_some());
    assert_eq!(guests.delete_now(&key, &Guard::Any).unwrap(), None);
    assert_eq!(guests.get(&key), Err(Refusal::NotFound));

    let (mut guests, key) = guest(false);
    let mut watch = guests.watch(1).unwrap();
    assert_eq!(guests.delete(&key, &Guard::Any).unwrap(), None, "one that was never bound goes at once");
    assert_eq!(told(&guests, &mut watch), [(Change::Modified, 2), (Change::Deleted, 3)]);
    assert_eq!(guests.requests(), Requests { written: 2, idle: 0, refused: 0 });
}

#[test]
fn a_watch_tells_everything_after_its_version_in_order() {
    let (mut lamps, lamp) = lamps();
    let key = &lamp.meta.key;
    let list = lamps.list();
    for spec in 2..4 {
        lamps.patch(key, &Guard::Any, |_, s| *s = spec).unwrap();
    }
    lamps.delete(key, &Guard::Any).unwrap();
    let mut watch = lamps.watch(list.version).unwrap();
    assert_eq!(lamps.behind(&watch), 3);
    assert_eq!(
        told(&lamps, &mut watch),
        [(Change::Modified, 2), (Change::Modified, 3), (Change::Deleted, 4)]
    );
    assert_eq!(lamps.next(&mut watch), None);
}

#[test]
fn what_is_deleted_is_told_as_it_was_before() {
    let (mut lamps, lamp) = lamps();
    lamps.delete(&lamp.meta.key, &Guard::Any).unwrap();
    let mut last = (*lamp).clone();
    last.meta.version = 2;
    let event = lamps.next(&mut lamps.watch(1).unwrap()).cloned();
    assert_eq!(event, Some(Event { change: Change::Deleted, object: Arc::new(last) }));
}

#[test]
fn a_list_from_a_cache_may_be_older_than_the_last_write() {
    let (mut lamps, lamp) = lamps();
    lamps.patch(&lamp.meta.key, &Guard::Any, |_, spec| *spec = 2).unwrap();
    lamps.delete(&lamp.meta.key, &Guard::Any).unwrap();
    let specs = |version| lamps.list_at(version).unwrap().items.iter().map(|o| o.spec).collect::<Vec<_>>();
    assert_eq!([specs(0), specs(1), specs(2), specs(3)], [vec![], vec![1], vec![2], vec![]]);
    assert_eq!(lamps.list(), List { version: 3, items: Vec::new() });
}

#[test]
fn what_has_been_compacted_cannot_be_watched_or_listed() {
    let (mut lamps, lamp) = lamps();
    lamps.patch(&lamp.meta.key, &Guard::Any, |_, spec| *spec = 2).unwrap();
    lamps.compact(2);
    assert_eq!(lamps.watch(1), Err(Refusal::Expired));
    assert_eq!(lamps.list_at(1), Err(Refusal::Expired));
    assert!(lamps.watch(2).is_ok() && lamps.list_at(2).is_ok());
    // That of this kind there is nothing to be told does not count.
    lamps.compact(3);
    assert_eq!(lamps.watch(2), Err(Refusal::Expired));
    assert_eq!(lamps.list().items[0].spec, 2);
}

#[test]
fn without_guards_every_write_goes_through() {
    let (mut lamps, lamp) = lamps();
    lamps.ignore_guards();
    lamps.patch(&lamp.meta.key, &Guard::Any, |_, spec| *spec = 2).unwrap();
    assert_eq!(lamps.patch(&lamp.meta.key, &Guard::version(1), |_, spec| *spec = 3).unwrap().spec, 3);
}
