//! Near-duplicates: texts that share most of their shingles (runs of characters). What is learned from one is known of
//! the other, so they must not stand on both sides of a split.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Characters of a shingle.
const SHINGLE: usize = 5;

/// Signatures have so many rows, in bands of so many: texts that share a band are compared.
const ROWS: usize = 48;
const BAND: usize = 3;

/// From most to least alike that still counts as near; 1 is equal but for case and spaces.
pub const LEVELS: [f64; 3] = [0.8, 0.9, 1.0];

fn shingles(text: &str) -> HashSet<u64> {
    let plain: Vec<char> = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase().chars().collect();
    let hash = |part: &[char]| {
        let mut hasher = DefaultHasher::new();
        part.hash(&mut hasher);
        hasher.finish()
    };
    match plain.len() {
        0..=SHINGLE => [hash(&plain)].into(),
        _ => plain.windows(SHINGLE).map(hash).collect(),
    }
}

/// The smallest hash of a set under each of many orders: equal in two sets as often as the sets are alike.
fn signature(set: &HashSet<u64>) -> [u64; ROWS] {
    let mut smallest = [u64::MAX; ROWS];
    for value in set {
        let mut x = *value;
        for row in &mut smallest {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *row = (*row).min(x ^ (x >> 29));
        }
    }
    smallest
}

/// Share of the shingles of both that both have.
fn alike(a: &HashSet<u64>, b: &HashSet<u64>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both) as f64
}

/// All pairs that are at least so alike (but for the few that share no band), each (smaller, larger).
pub fn pairs(texts: &[&str], least: f64) -> Vec<(usize, usize)> {
    let sets: Vec<_> = texts.iter().map(|text| shingles(text)).collect();
    let mut bands: HashMap<(usize, &[u64]), Vec<usize>> = HashMap::new();
    let signatures: Vec<_> = sets.iter().map(signature).collect();
    let mut found = HashSet::new();
    for (i, signature) in signatures.iter().enumerate() {
        for (band, rows) in signature.chunks(BAND).enumerate() {
            let others = bands.entry((band, rows)).or_default();
            // The first of a band stands for the rest: who is like the rest is like it, nearly always.
            for other in others.iter().take(8).copied() {
                if !found.contains(&(other, i)) && alike(&sets[other], &sets[i]) >= least {
                    found.insert((other, i));
                }
            }
            others.push(i);
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable();
    found
}

/// Groups of near-duplicates, each by its smallest member, and how alike is near. Where most of the data are
/// variations of one another, only closer ones count: else nothing could be held out.
pub fn groups(texts: &[&str]) -> (Vec<Vec<usize>>, f64) {
    for least in LEVELS {
        let groups = joined(texts.len(), &pairs(texts, least));
        let largest = groups.iter().map(Vec::len).max().unwrap_or(0);
        if largest * 10 <= texts.len() * 3 || least == LEVELS[2] {
            return (groups, least);
        }
    }
    unreachable!("the last level returns")
}

/// Everything that is connected by pairs.
fn joined(n: usize, pairs: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut parent: Vec<usize> = (0..n).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    for (a, b) in pairs {
        let (a, b) = (root(&mut parent, *a), root(&mut parent, *b));
        parent[a.max(b)] = a.min(b);
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    (0..n).for_each(|i| groups.entry(root(&mut parent, i)).or_default().push(i));
    groups.into_values().collect()
}

/// A part of the data held out, about `share` of them: (training, held out). Groups stay whole.
pub fn split(groups: &[Vec<usize>], share: f64, most: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let n: usize = groups.iter().map(Vec::len).sum();
    let mut left = ((n as f64 * share) as usize).clamp(1, most.max(1));
    let mut order: Vec<&Vec<usize>> = groups.iter().collect();
    order.sort_by_key(|g| (crate::num::uniform(seed, 1 << 40, g[0] as u64) * 2f64.powi(52)) as u64);
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for group in order {
        if group.len() <= left {
            left -= group.len();
            held.extend(group);
        } else {
            train.extend(group);
        }
    }
    train.sort_unstable();
    held.sort_unstable();
    (train, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_duplicates_are_found_and_kept_together() {
        let base = "The quick brown fox jumps over the lazy dog near the river bank on a sunny day";
        let near = base.replace("sunny", "rainy");
        let others = ["Another sentence about the price of bread", "Nothing alike at all here", "Where is it?", "xyz"];
        let texts: Vec<&str> = [base, others[0], &near].into_iter().chain(others[1..].iter().copied()).collect();
        assert_eq!(pairs(&texts, 0.75), [(0, 2)]);
        let groups = joined(texts.len(), &pairs(&texts, 0.75));
        assert_eq!(groups.iter().filter(|g| g.len() > 1).collect::<Vec<_>>(), [&vec![0, 2]]);
        for seed in 0..20 {
            let (train, held) = split(&groups, 0.5, 100, seed);
            assert_eq!(train.contains(&0), train.contains(&2), "{train:?} {held:?}");
            assert_eq!(train.len() + held.len(), texts.len());
        }
        // Where everything is near everything, only what is the same counts.
        let alike: Vec<String> = (0..20).map(|i| format!("{base} {i}")).collect();
        let (groups, least) = super::groups(&alike.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((groups.len(), least), (20, 1.0));
    }

    #[test]
    fn the_comparison_finds_nearly_all_pairs() {
        // Two thousand texts, each with a twin in which one word of sixteen differs.
        let word = |i: u64, k: u64| format!("w{:03}", (crate::num::uniform(5, i, k) * 1000.0) as u64);
        let text = |i: u64| (0..16).map(|k| word(i, k)).collect::<Vec<_>>();
        let twin = |i: u64| {
            let mut words = text(i);
            words[(i % 16) as usize] = "other".into();
            words
        };
        let all: Vec<String> = (0..1000).flat_map(|i| [text(i).join(" "), twin(i).join(" ")]).collect();
        let found = pairs(&all.iter().map(String::as_str).collect::<Vec<_>>(), 0.75);
        assert!(found.iter().all(|(a, b)| a / 2 == b / 2), "no strangers");
        assert!(found.len() > 950, "{} of 1000", found.len());
    }
}
