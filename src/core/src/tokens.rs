//! The devices that the kubelet sees, and which slice each stands for.
//!
//! The kubelet hands any free healthy device of a resource to any pod, so a device is a token and not a slice: the list of
//! tokens never changes, and as many of them are healthy as there are slices that pods can have. Which slice a token stands
//! for is settled when the kubelet allocates it, and holds until its pod is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::geometry::Place;
use crate::profile::ProfileName;

/// A device as the kubelet sees it, written `<profile>/<number>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token {
    /// The profile of which it stands for a slice.
    pub profile: ProfileName,
    /// Its number among the profile's tokens, from 0.
    pub number: u32,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.profile, self.number)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why a device id is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no device of Slicegate's; its devices are called <profile>/<number>, as in 1g.10gb/0")]
pub struct InvalidToken(pub String);

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(id: &str) -> Result<Self, InvalidToken> {
        let parsed = id.split_once('/').and_then(|(profile, number)| {
            let canonical = number == "0" || !number.starts_with(['0', '+']);
            Some(Self { profile: profile.parse().ok()?, number: number.parse().ok().filter(|_| canonical)? })
        });
        parsed.ok_or_else(|| InvalidToken(id.to_owned()))
    }
}

/// Why tokens cannot be allocated. The pod fails with it, and the kubelet shows it as `UnexpectedAdmissionError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node has no such device.
    #[error(
        "this node has no device {0}: its kubelet and its Slicegate agent are not of one mind; restart the agent"
    )]
    Unknown(Token),
    /// No slice is free.
    #[error(
        "no slice of {0} is free on this node: it was taken away, or taken by a pod that did not come through the queue, while \
         this pod was on its way; its controller may create it again"
    )]
    NoneFree(ProfileName),
}

/// The tokens of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    counts: BTreeMap<ProfileName, u32>,
    open: Vec<Place>,
    bound: BTreeMap<Token, Place>,
    unexplained: BTreeSet<Token>,
}

impl Tokens {
    /// Tokens that are bound as they were before.
    pub fn new(bound: BTreeMap<Token, Place>) -> Self {
        Self { bound, ..Self::default() }
    }

    /// Sets how many tokens each profile has: as many as the GPUs could ever hold. A count never falls, since a kubelet that
    /// misses a device while it allocates it crashes (`devicemanager/manager.go`, a nil device's topology).
    pub fn set_counts(&mut self, counts: &BTreeMap<ProfileName, u32>) {
        for (profile, count) in counts {
            let known = self.counts.entry(profile.clone()).or_default();
            *known = (*known).max(*count);
        }
    }

    /// How many tokens each profile has.
    pub fn counts(&self) -> &BTreeMap<ProfileName, u32> {
        &self.counts
    }

    /// Sets which slices may be given away or kept, in the order in which they are to be given away.
    pub fn set_open(&mut self, open: Vec<Place>) {
        self.open = open;
    }

    /// Sets which tokens the kubelet says pods have though they are not bound to a slice. They are given to nobody.
    pub fn set_unexplained(&mut self, tokens: BTreeSet<Token>) {
        self.unexplained = tokens;
    }

    /// The slice that a token stands for.
    pub fn place(&self, token: &Token) -> Option<&Place> {
        self.bound.get(token)
    }

    /// The token that stands for a slice.
    pub fn token(&self, place: &Place) -> Option<&Token> {
        self.bound.iter().find(|(_, bound)| *bound == place).map(|(token, _)| token)
    }

    /// Every binding.
    pub fn bound(&self) -> &BTreeMap<Token, Place> {
        &self.bound
    }

    /// Binds each of `tokens` to a slice, or none of them. A token that is bound keeps its slice, for an init container's
    /// devices pass on to the pod's containers, unless the slice is one of `taken`, where something of an earlier pod lives
    /// on, or may no longer be given away. They come from as many GPUs as can be: what a container has of one GPU it cannot
    /// use together (NCCL refuses two ranks on one GPU). Returns the slices in the order of the tokens.
    pub fn allocate(&mut self, tokens: &[Token], taken: &BTreeSet<Place>) -> Result<Vec<Place>, Refusal> {
        let mut bound = self.bound.clone();
        let mut places = Vec::new();
        for token in tokens {
            if self.counts.get(&token.profile).is_none_or(|count| token.number >= *count) {
                return Err(Refusal::Unknown(token.clone()));
            }
            let may_have = |place: &Place| self.open.contains(place) && !taken.contains(place);
            let kept = bound.remove(token).filter(may_have);
            let free = || {
                let others: BTreeSet<&Place> = bound.values().collect();
                let fits =
                    |p: &&Place| p.slice.profile == token.profile && may_have(p) && !others.contains(p);
                let of_gpu = |p: &&Place| places.iter().filter(|given: &&Place| given.gpu == p.gpu).count();
                self.open.iter().filter(fits).min_by_key(of_gpu).cloned()
            };
            let place = kept.or_else(free).ok_or_else(|| Refusal::NoneFree(token.profile.clone()))?;
            bound.insert(token.clone(), place.clone());
            places.push(place);
        }
        self.bound = bound;
        self.unexplained.retain(|token| !tokens.contains(token));
        Ok(places)
    }

    /// Notes that a token stands for a slice, as was found out. `false` when another token does already.
    pub fn restore(&mut self, token: Token, place: Place) -> bool {
        let free = !self.bound.contains_key(&token) && self.token(&place).is_none();
        if free {
            self.unexplained.remove(&token);
            self.bound.insert(token, place);
        }
        free
    }

    /// Unbinds a token whose pod is over.
    pub fn release(&mut self, token: &Token) {
        self.bound.remove(token);
    }

    /// The healthy tokens by profile: those in pods' hands whose slice works, and as many more as there are slices free for
    /// others, lowest numbers first.
    pub fn healthy(&self) -> BTreeMap<ProfileName, BTreeSet<u32>> {
        let given: BTreeSet<&Place> = self.bound.values().collect();
        self.counts
            .iter()
            .map(|(profile, count)| {
                let free = self.open.iter().filter(|p| p.slice.profile == *profile && !given.contains(p));
                let of_profile = self.bound.iter().filter(|(token, _)| token.profile == *profile);
                let works = of_profile.filter(|(_, place)| self.open.contains(place));
                let spare = (0..*count).filter(|number| {
                    let token = Token { profile: profile.clone(), number: *number };
                    !self.bound.contains_key(&token) && !self.unexplained.contains(&token)
                });
                let numbers = works.map(|(token, _)| token.number).chain(spare.take(free.count()));
                (profile.clone(), numbers.collect())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
