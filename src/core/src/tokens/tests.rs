use proptest::prelude::*;

use super::*;
use crate::geometry::Slice;
use crate::id::GpuUuid;

fn place(gpu: u8, start: u8, profile: &str) -> Place {
    Place {
        gpu: GpuUuid::new(format!("GPU-{gpu}")),
        slice: Slice { start, size: 1, profile: profile.parse().unwrap() },
    }
}

fn token(id: &str) -> Token {
    id.parse().unwrap()
}

/// Four tokens of 1g.10gb and one of 7g.80gb.
fn tokens(open: &[Place]) -> Tokens {
    let mut tokens = Tokens::default();
    tokens.set_counts(&[("1g.10gb".parse().unwrap(), 4), ("7g.80gb".parse().unwrap(), 1)].into());
    tokens.set_open(open.to_vec());
    tokens
}

fn healthy(tokens: &Tokens, profile: &str) -> Vec<u32> {
    tokens.healthy()[&profile.parse().unwrap()].iter().copied().collect()
}

#[test]
fn ids_are_read_as_they_are_written_and_nothing_else_is() {
    for id in ["1g.10gb/0", "1g.24gb+me.all/13", "1g.24gb-me/2"] {
        assert_eq!(token(id).to_string(), id);
    }
    for id in
        ["1g.10gb", "1g.10gb/", "1g.10gb/x", "1g.10gb/01", "1g.10gb/+1", "1g.10gb/-1", "gpu/0", "MIG-4711"]
    {
        assert!(id.parse::<Token>().unwrap_err().to_string().contains(id));
    }
}

#[test]
fn as_many_tokens_are_healthy_as_there_are_slices() {
    let mut tokens = tokens(&[place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb")]);
    assert_eq!((healthy(&tokens, "1g.10gb"), healthy(&tokens, "7g.80gb")), (vec![0, 1], vec![]));
    tokens.set_open(vec![place(0, 1, "1g.10gb")]);
    assert_eq!(healthy(&tokens, "1g.10gb"), [0]);
}

#[test]
fn an_allocated_token_stays_healthy_while_others_come_and_go() {
    let (a, b) = (place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"));
    let mut tokens = tokens(&[a.clone(), b.clone()]);
    assert_eq!(tokens.allocate(&[token("1g.10gb/1")], &BTreeSet::new()), Ok(vec![a.clone()]));
    tokens.set_open(vec![a.clone()]);
    assert_eq!(healthy(&tokens, "1g.10gb"), [1]);
    tokens.set_open(vec![a, b]);
    assert_eq!(healthy(&tokens, "1g.10gb"), [0, 1]);
}

#[test]
fn a_token_whose_slice_broke_is_unhealthy_and_the_others_are_not() {
    let (a, b) = (place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"));
    let mut tokens = tokens(&[a, b.clone()]);
    tokens.allocate(&[token("1g.10gb/0")], &BTreeSet::new()).unwrap();
    tokens.set_open(vec![b]);
    assert_eq!(healthy(&tokens, "1g.10gb"), [1]);
}

#[test]
fn a_token_in_flight_while_its_slice_goes_gets_another_one_if_there_is_one() {
    let (a, b) = (place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"));
    let mut tokens = tokens(&[a, b.clone()]);
    tokens.set_open(vec![b.clone()]);
    assert_eq!(healthy(&tokens, "1g.10gb"), [0]);
    assert_eq!(tokens.allocate(&[token("1g.10gb/1")], &BTreeSet::new()), Ok(vec![b]));
    assert_eq!(healthy(&tokens, "1g.10gb"), [1], "the kubelet sees that the other one is taken");
    let refusal = tokens.allocate(&[token("1g.10gb/0")], &BTreeSet::new()).unwrap_err();
    assert_eq!(refusal, Refusal::NoneFree("1g.10gb".parse().unwrap()));
}

#[test]
fn a_request_is_met_whole_or_not_at_all() {
    let mut tokens = tokens(&[place(0, 0, "1g.10gb")]);
    let before = tokens.clone();
    tokens.allocate(&[token("1g.10gb/0"), token("1g.10gb/1")], &BTreeSet::new()).unwrap_err();
    assert_eq!(tokens, before);
    let refusal = tokens.allocate(&[token("1g.10gb/4")], &BTreeSet::new()).unwrap_err();
    assert_eq!(refusal, Refusal::Unknown(token("1g.10gb/4")));
    assert!(tokens.allocate(&[token("3g.40gb/0")], &BTreeSet::new()).is_err());
}

#[test]
fn what_an_init_container_had_passes_on_to_the_containers_of_its_pod() {
    let (a, b) = (place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"));
    let mut tokens = tokens(&[a, b]);
    let first = tokens.allocate(&[token("1g.10gb/1")], &BTreeSet::new()).unwrap();
    assert_eq!(tokens.allocate(&[token("1g.10gb/1")], &BTreeSet::new()).unwrap(), first);
    assert_eq!(tokens.bound().len(), 1);
}

#[test]
fn a_slice_in_which_something_lives_on_is_not_given_again() {
    let (a, b) = (place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"));
    let mut tokens = tokens(&[a.clone(), b.clone()]);
    tokens.allocate(&[token("1g.10gb/0")], &BTreeSet::new()).unwrap();
    assert_eq!(tokens.allocate(&[token("1g.10gb/0")], &[a].into()), Ok(vec![b]));
}

#[test]
fn a_token_that_some_pod_has_is_given_to_nobody_though_its_slice_is_not_known() {
    let mut tokens = tokens(&[place(0, 0, "1g.10gb")]);
    tokens.set_unexplained([token("1g.10gb/0")].into());
    assert_eq!(healthy(&tokens, "1g.10gb"), [1]);
}

#[test]
fn counts_never_fall() {
    let mut tokens = tokens(&[]);
    tokens.set_counts(&[("1g.10gb".parse().unwrap(), 1)].into());
    assert_eq!(tokens.counts()[&"1g.10gb".parse().unwrap()], 4);
}

#[derive(Clone, Debug)]
enum Event {
    Open(Vec<u8>),
    /// The kubelet allocates this many of the healthy tokens that it knows free.
    Admit(usize, usize),
    End(usize),
    /// The kubelet takes up what the agent last told it.
    Learn,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        prop::collection::vec(0..7_u8, 0..7).prop_map(Event::Open),
        (1..3_usize, 0..64_usize).prop_map(|(n, pick)| Event::Admit(n, pick)),
        (0..8_usize).prop_map(Event::End),
        Just(Event::Learn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a kubelet that learns late and picks any free token: no two pods get one slice, none gets a slice that is not
    /// open, a pod keeps the slice that it has, and healthy tokens are exactly as many as slices.
    #[test]
    fn no_slice_is_given_twice(events in prop::collection::vec(event(), 1..60)) {
        let mut tokens = Tokens::default();
        let profile: ProfileName = "1g.10gb".parse().unwrap();
        tokens.set_counts(&[(profile.clone(), 7)].into());
        let mut known: BTreeSet<u32> = BTreeSet::new();
        let mut pods: Vec<(Vec<Token>, Vec<Place>)> = Vec::new();
        for event in events {
            match event {
                Event::Open(starts) => {
                    // What pods have stays open: the agent sees to that.
                    let mut open: BTreeSet<Place> = starts.iter().map(|s| place(0, *s, "1g.10gb")).collect();
                    open.extend(tokens.bound().values().cloned());
                    tokens.set_open(open.into_iter().collect());
                }
                Event::Admit(n, pick) => {
                    let in_use: BTreeSet<u32> = pods.iter().flat_map(|(t, _)| t).map(|t| t.number).collect();
                    let mut free: Vec<u32> = known.difference(&in_use).copied().collect();
                    if free.len() < n { continue }
                    let at = pick % free.len();
                    free.rotate_left(at);
                    let ids: Vec<Token> =
                        free[..n].iter().map(|number| Token { profile: profile.clone(), number: *number }).collect();
                    let open = tokens.open.clone();
                    let taken: BTreeSet<Place> = tokens.bound().values().cloned().collect();
                    match tokens.allocate(&ids, &BTreeSet::new()) {
                        Ok(places) => {
                            for place in &places {
                                prop_assert!(open.contains(place));
                                prop_assert!(!pods.iter().any(|(_, held)| held.contains(place)), "given twice");
                            }
                            pods.push((ids, places));
                        }
                        Err(_) => prop_assert!(open.iter().filter(|p| !taken.contains(p)).count() < n),
                    }
                }
                Event::End(index) if !pods.is_empty() => {
                    let (ids, _) = pods.remove(index % pods.len());
                    for token in &ids {
                        tokens.release(token);
                    }
                }
                Event::End(_) => {}
                Event::Learn => known = tokens.healthy()[&profile].clone(),
            }
            prop_assert_eq!(tokens.healthy()[&profile].len(), tokens.open.len());
            for (ids, places) in &pods {
                for (token, place) in ids.iter().zip(places) {
                    prop_assert_eq!(tokens.place(token), Some(place));
                    prop_assert!(tokens.healthy()[&profile].contains(&token.number));
                }
            }
        }
    }
}

#[test]
fn the_slices_of_a_container_come_from_as_many_gpus_as_can_be() {
    let open =
        [place(0, 0, "1g.10gb"), place(0, 1, "1g.10gb"), place(1, 0, "1g.10gb"), place(1, 1, "1g.10gb")];
    let mut tokens = tokens(&open);
    let three = ["1g.10gb/0", "1g.10gb/1", "1g.10gb/2"].map(token);
    let [a, b, c, d] = open;
    assert_eq!(tokens.allocate(&three, &BTreeSet::new()), Ok(vec![a, c, b]));
    assert_eq!(tokens.allocate(&[token("1g.10gb/3")], &BTreeSet::new()), Ok(vec![d]));
}
