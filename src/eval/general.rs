//! Plain sentences of our own, about nothing in particular: what a model loses on them while it is tuned is what it
//! forgot. A loss on sixty sentences shows damage, not quality.

/// One a line of `general.txt`.
pub fn sentences() -> impl Iterator<Item = &'static str> {
    include_str!("general.txt").lines().filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_are_sixty_different_sentences() {
        let all: std::collections::HashSet<_> = super::sentences().collect();
        assert_eq!((all.len(), super::sentences().count()), (60, 60));
        assert!(all.iter().all(|s| (30..200).contains(&s.len()) && s.ends_with(['.', '?', '!'])), "whole sentences");
    }
}
