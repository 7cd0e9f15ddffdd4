//! What a short probe of some data says: whether this model can learn them, and what would help.
//!
//! A loss that falls proves little: every model learns what answers look like. So the same budget is also spent on a
//! *control*, the same data with all meaning taken out: the answers dealt anew among the prompts (in texts without
//! prompts, the characters of each text shuffled). What the tuned model has learned is what it does better than the
//! control, on held-out items, with an interval that allows for the choice of the items and for the chance of a run
//! (runs on parts of one size tell how far apart equal runs are).

use super::curve::{Curve, Foreseen, Law, Point, foresee, mean, weight};
use super::score::{self, Counts, Estimate, Figure, Rule};
use serde::Serialize;

/// Losses of the held-out items: (summed, tokens).
pub type Losses = Vec<(f64, f64)>;

/// Which held-out answers are exactly right: by the tuned model at the end of its run, and by each of what it has to
/// beat: the untuned model, the control at its end, and the answer that is given most often.
#[derive(Clone, Debug)]
pub struct Right {
    pub tuned: Vec<bool>,
    pub others: [Vec<bool>; 3],
}

/// What the probe's runs gave.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Held-out losses before any tuning.
    pub base: Losses,
    /// At the end of runs on nested parts of the data, each the full run in small: as many passes.
    pub parts: Vec<Point>,
    /// The run on the largest part, and the control of that size, each at its best moment.
    pub tuned: Losses,
    pub control: Losses,
    /// None of texts, which answer nothing.
    pub right: Option<Right>,
    /// Mean held-out loss of the run on the largest part as it went on: (step, loss).
    pub moments: Vec<(u64, f64)>,
    /// Where a full pass over the data ends, in steps.
    pub steps_an_epoch: f64,
    /// Examples of the full run, and whether the runs on parts of the data made as many passes as it would.
    pub full_size: usize,
    pub in_small: bool,
    /// Whether the items are answers to something, not texts.
    pub answers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Potential {
    Clear,
    Some,
    None,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub potential: Potential,
    /// Held-out loss in nats a token: before tuning, tuned on all data, and tuned on the control.
    pub base: f64,
    pub tuned: f64,
    pub control: f64,
    /// How much of the control's loss the tuned model is without, in percent.
    pub learned: Estimate,
    /// How much of the base's loss, in percent.
    pub gained: Estimate,
    /// How many more of the held-out answers the tuned model has exactly right than the untuned one, the control or a
    /// constant answer, whichever has most, in points of percent; None of texts.
    pub more_right: Option<Estimate>,
    /// (examples, held-out loss, percent of the answers exactly right) at the end of the runs.
    pub curve: Vec<(usize, f64, f64)>,
    pub law: [f64; 3],
    /// What the full run comes to; None where the probe was too short to tell.
    pub foreseen: Option<Foreseen>,
    /// How much lower the loss of the full run would be with twice the data, in percent.
    pub twice_the_data: Estimate,
    pub more_data: bool,
    pub more_training: bool,
    /// The step after which the held-out loss only rose.
    pub stop_at: Option<u64>,
    /// The verdict in plain words, a sentence a line.
    pub words: Vec<String>,
}

/// Less of a gain than this, in percent of the loss, is none that matters.
const MATTERS: f64 = 3.0;
/// A law never promises less than nothing, so that a gain that is as good as certain is at least so much.
const SURELY: f64 = 1.0;
/// A gain that anyone would notice, in percent of the loss or in points of exact answers.
const CLEAR: f64 = 15.0;

impl Estimate {
    /// It is there, and it matters.
    fn shows(&self) -> bool {
        self.low > 0.0 && self.value >= MATTERS
    }
}

/// Percent of `theirs` that `ours` is without, over the same items.
fn saved(ours: &Losses, theirs: &Losses, seed: u64) -> Estimate {
    let counts = |l: &Losses| -> Vec<Counts> { l.iter().map(|(loss, n)| vec![(0, *loss), (1, *n)]).collect() };
    let figure = [Figure { name: "loss", rule: Rule::Mean(0, 1) }];
    let [ours, theirs] = [ours, theirs].map(|l| score::measure(&figure, 2, &counts(l), seed).remove(0));
    let difference = score::difference(&theirs, &ours);
    let percent = |x: f64| 100.0 * x / theirs.estimate.value;
    Estimate { value: percent(difference.value), low: percent(difference.low), high: percent(difference.high) }
}

/// The share of answers that are right.
pub fn share(hits: &[bool]) -> f64 {
    hits.iter().filter(|hit| **hit).count() as f64 / hits.len().max(1) as f64
}

/// Points of percent by which the tuned model has more right than the best of the others, over the same items; `chance`
/// is that of one run.
fn more_right(right: &Right, chance: f64, seed: u64) -> Estimate {
    let best = right.others.iter().max_by(|a, b| share(a).total_cmp(&share(b))).expect("some to beat");
    let counts = |hits: &[bool]| -> Vec<Counts> {
        hits.iter().map(|hit| vec![(0, f64::from(u8::from(*hit))), (1, 1.0)]).collect()
    };
    let figure = [Figure { name: "exact", rule: Rule::Share(0, 1) }];
    let [ours, theirs] = [&right.tuned, best].map(|hits| score::measure(&figure, 2, &counts(hits), seed).remove(0));
    // Small parts have nothing right where a task is hard, and then tell nothing of chance: it counts as no less than
    // that of drawing the items.
    let p = share(&right.tuned);
    let least = 196.0 * (p * (1.0 - p) / right.tuned.len().max(1) as f64).sqrt();
    widened(score::difference(&ours, &theirs), chance.max(least) * 2f64.sqrt())
}

/// How far apart runs on as much data as the largest are: 95 % of one run's chance, by Student's t, from the pairs of
/// runs on parts of one size, as `apart` tells it. 0 where there are none.
fn chance(parts: &[Point], largest: usize, apart: impl Fn(&Point, &Point) -> f64) -> f64 {
    const T: [f64; 5] = [0.0, 12.71, 4.30, 3.18, 2.78];
    let twin = |(i, p): (usize, &Point)| {
        let other = parts[..i].iter().find(|q| q.size == p.size)?;
        Some(weight(p.size as f64, largest as f64) * apart(p, other).powi(2) / 2.0)
    };
    let apart: Vec<f64> = parts.iter().enumerate().filter_map(twin).collect();
    let variance = apart.iter().sum::<f64>() / apart.len().max(1) as f64;
    T[apart.len().min(T.len() - 1)] * variance.sqrt()
}

/// An interval that also allows for chance, which is independent of the items.
fn widened(e: Estimate, chance: f64) -> Estimate {
    let side = |from: f64| ((e.value - from).powi(2) + chance * chance).sqrt();
    Estimate { value: e.value, low: e.value - side(e.low), high: e.value + side(e.high) }
}

pub fn judge(seen: &Seen, seed: u64) -> Verdict {
    let all = |losses: &Losses| mean(losses, 0..losses.len());
    let full = seen.parts.iter().max_by_key(|p| p.size).expect("a run on all data");
    let of_loss = 100.0 * chance(&seen.parts, full.size, |p, q| (p.loss() / q.loss()).ln()) * all(&seen.tuned);
    let of_right = 100.0 * chance(&seen.parts, full.size, |p, q| p.exact - q.exact);
    // Two runs are compared with each other, one run with none.
    let learned = widened(saved(&seen.tuned, &seen.control, seed), of_loss * 2f64.sqrt() / all(&seen.control));
    let gained = widened(saved(&seen.tuned, &seen.base, seed), of_loss / all(&seen.base));
    let right = seen.right.as_ref().map(|right| more_right(right, of_right, seed));
    let sizes: Vec<(f64, f64)> = seen.parts.iter().map(|p| (p.size as f64, p.loss())).collect();
    let (curve, n) = (Curve::new(&sizes, seed), seen.full_size as f64);
    let (Law { a, b, c }, twice) = (curve.best, curve.gain(n, 2.0));
    let loss_shows = learned.shows() && gained.shows();
    // A few answers that the model is surely wrong about can hide in the loss what it has right.
    let potential = match right.filter(Estimate::shows) {
        Some(right) if right.value >= CLEAR => Potential::Clear,
        _ if loss_shows && learned.value >= CLEAR && gained.value >= CLEAR => Potential::Clear,
        Some(_) => Potential::Some,
        None if loss_shows => Potential::Some,
        None => Potential::None,
    };
    let mut verdict = Verdict {
        potential,
        base: all(&seen.base),
        tuned: all(&seen.tuned),
        control: all(&seen.control),
        learned,
        gained,
        more_right: right,
        curve: seen.parts.iter().map(|p| (p.size, p.loss(), 100.0 * p.exact)).collect(),
        law: [a, b, c],
        foreseen: seen.in_small.then(|| foresee(&seen.parts, &curve, n, seen.answers)),
        twice_the_data: twice,
        more_data: potential != Potential::None && twice.low >= SURELY && twice.value >= MATTERS,
        more_training: potential != Potential::None && still_falling(&seen.moments),
        stop_at: turning_point(&seen.moments),
        words: Vec::new(),
    };
    verdict.words = words(&verdict, seen, full.size);
    verdict
}

/// Whether the last stretch still bettered the loss by what matters.
fn still_falling(moments: &[(u64, f64)]) -> bool {
    let [.., (_, before), (_, last)] = moments else { return false };
    100.0 * (before - last) / before >= MATTERS
}

/// The step of the lowest loss, where the loss has risen since by what matters.
fn turning_point(moments: &[(u64, f64)]) -> Option<u64> {
    let (step, lowest) = moments.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let (_, last) = moments.last()?;
    (100.0 * (last - lowest) / lowest >= MATTERS).then_some(step)
}

fn words(v: &Verdict, seen: &Seen, size: usize) -> Vec<String> {
    let held = seen.base.len();
    let range = |e: &Estimate| format!("{:.0} % (95 %: {:.0} to {:.0})", e.value, e.low, e.high);
    let learnable = if v.potential == Potential::Clear { "Learnable" } else { "Learnable in part" };
    let right = v.more_right.filter(|right| right.shows());
    let mut words = Vec::new();
    words.push(match v.potential {
        Potential::None if v.learned.shows() => format!(
            "No potential shown: the untuned model does as well on the {held} held-out items; tuning saves {} of its loss.",
            range(&v.gained)
        ),
        Potential::None => format!(
            "No potential shown: on {held} held-out items the model does no better than one tuned on the same answers in \
             the wrong places ({} less loss). What there is to learn does not follow from the prompts, or not for this model.",
            range(&v.learned)
        ),
        _ if v.learned.shows() && v.gained.shows() => format!(
            "{learnable}: on {held} held-out items the tuned model is without {} of the loss that the form of the answers \
             alone would leave.",
            range(&v.learned)
        ),
        _ => format!("{learnable}: the loss on {held} held-out items does not show it yet, the answers do."),
    });
    words.extend(right.map(|right| {
        format!(
            "Exactly right are {} more of the answers than untuned, with mixed-up answers or a constant one.",
            range(&right)
        )
    }));
    words
        .push(format!("Loss a token: {:.3} before, {:.3} tuned on {size}, {:.3} control.", v.base, v.tuned, v.control));
    if v.potential == Potential::None {
        let right = v.more_right.is_some_and(|right| right.high >= CLEAR);
        words.push(match right || (v.learned.high >= CLEAR && v.gained.high >= CLEAR) {
            true => "The ranges are wide: a longer probe (--minutes) may show something yet.".into(),
            false => "More data of this kind or more training cannot be expected to help. Check the answers, or try a \
                      larger model."
                .into(),
        });
        return words;
    }
    words.push(match &v.foreseen {
        Some(Foreseen { loss, exact }) => {
            let exact =
                exact.map_or(String::new(), |e| format!(", with {} of the answers exactly as expected", range(&e)));
            let Estimate { value, low, high } = loss;
            format!("The full run should come to a held-out loss of {value:.3} (95 %: {low:.3} to {high:.3}){exact}.")
        }
        None => "What the full run comes to cannot be told from so short a probe: give it more --minutes.".into(),
    });
    let twice = range(&v.twice_the_data);
    words.push(match v.more_data {
        true => format!("More data are worth it: twice as many should lower the loss by {twice}."),
        false => format!("More data: no worthwhile gain shown; twice as many would lower the loss by {twice}."),
    });
    words.push(match (v.more_training, v.stop_at) {
        (true, _) => "More training is worth it: the held-out loss was still falling when the probe ended.".into(),
        (_, Some(step)) => format!(
            "Stop early: the held-out loss was lowest after about {step} steps ({:.1} passes over the data) and rose since.",
            step as f64 / seen.steps_an_epoch
        ),
        _ => "More training: the held-out loss had levelled off; stop when it no longer falls between evaluations.".into(),
    });
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(tuned: f64, control: f64, base: f64) -> Seen {
        let losses = |mean: f64, stream: u64| -> Losses {
            (0..80).map(|i| (mean * 5.0 * (0.5 + crate::num::uniform(2, stream, i)), 5.0)).collect()
        };
        let part = |(size, chance): (usize, f64)| {
            let losses = losses(chance * tuned * (200.0 / size as f64).powf(0.3), 1);
            Point { size, losses, exact: 0.5 }
        };
        let twins = [(25, 1.01), (50, 0.99), (100, 1.01)];
        Seen {
            base: losses(base, 1),
            parts: [(200, 1.0), (25, 1.0), (50, 1.0), (100, 1.0)].into_iter().chain(twins).map(part).collect(),
            tuned: losses(tuned, 1),
            control: losses(control, 1),
            right: None,
            moments: vec![(10, 2.0), (20, 1.5), (40, 1.49)],
            steps_an_epoch: 10.0,
            full_size: 800,
            in_small: true,
            answers: true,
        }
    }

    #[test]
    fn verdicts() {
        let good = judge(&seen(1.0, 2.0, 3.0), 0);
        assert_eq!((good.potential, good.more_data, good.more_training), (Potential::Clear, true, false), "{good:?}");
        assert_eq!(judge(&seen(2.0, 2.0, 3.0), 0).potential, Potential::None, "no better than the control");
        assert_eq!(judge(&seen(1.0, 2.0, 1.0), 0).potential, Potential::None, "no better than before");
        assert_eq!(judge(&seen(1.8, 2.0, 3.0), 0).potential, Potential::Some);
        // Runs on parts of one size that are far apart: the same gain may be chance.
        let mut scattered = seen(1.8, 2.0, 3.0);
        let further = |p: &mut Point| p.losses.iter_mut().for_each(|(loss, _)| *loss *= 1.1);
        scattered.parts[4..].iter_mut().for_each(further);
        assert_eq!(judge(&scattered, 0).potential, Potential::None);
        // Answers that are right where the others' are wrong count, whatever the loss says.
        let hits = |share: usize| (0..80).map(|i| i * 7 % 80 < share).collect::<Vec<bool>>();
        let mut right = seen(2.1, 2.0, 2.0);
        right.right = Some(Right { tuned: hits(66), others: [hits(3), hits(20), hits(36)] });
        let verdict = judge(&right, 0);
        assert_eq!(verdict.potential, Potential::Clear, "{verdict:?}");
        assert_eq!(verdict.more_right.unwrap().value, 37.5, "against the best of the others");
        assert!(
            verdict.words[0].contains("the answers do") && verdict.words[1].contains("38 %"),
            "{:?}",
            verdict.words
        );
        // Four answers of eighty where nothing else has any may be chance.
        right.right = Some(Right { tuned: hits(4), others: [hits(0), hits(0), hits(0)] });
        assert_eq!(judge(&right, 0).potential, Potential::None);
        let mut late = seen(1.0, 2.0, 3.0);
        late.moments = vec![(10, 2.0), (20, 1.5), (40, 1.8)];
        assert_eq!(judge(&late, 0).stop_at, Some(20));
    }
}
