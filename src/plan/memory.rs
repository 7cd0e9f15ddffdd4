//! Memory of a plan: temporaries that are never alive together share a slot.
//!
//! Slots are shared across sequences as well, since sequences never run at the same time. A slot holds one kind of
//! element, and every tensor is a buffer of its own on the GPU (wgpu tracks hazards per buffer).

use super::{Buf, Elem, Life, Plan};
use std::collections::BTreeMap;

/// Where a buffer of the plan lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A buffer of its own.
    Own,
    /// The shared slot of this number.
    Slot(usize),
    /// Declared, but used by no step.
    Unused,
}

#[derive(Clone, Debug)]
pub struct SlotDecl {
    pub elem: Elem,
    pub len: usize,
}

/// The layout an executor allocates. Grows with its plan; what was placed stays where it is.
#[derive(Debug, Default)]
pub struct Memory {
    pub places: Vec<Place>,
    pub slots: Vec<SlotDecl>,
    sequences: usize,
}

impl Memory {
    /// Places the buffers and sequences added to `plan` since the last call.
    pub fn extend(&mut self, plan: &Plan) {
        for decl in &plan.bufs[self.places.len()..] {
            self.places.push(if decl.life == Life::Persistent { Place::Own } else { Place::Unused });
        }
        let mut spans: Vec<(Buf, Span)> = (self.sequences..plan.sequences.len()).flat_map(|s| spans(plan, s)).collect();
        self.sequences = plan.sequences.len();
        // The largest first: what is small then finds room in between, and no slot is as large as it is for the sake of
        // one buffer while small ones that live long take it up.
        spans.sort_by_key(|(buf, span)| (std::cmp::Reverse(plan.decl(*buf).len), span.sequence, span.first));
        let mut taken: Vec<Vec<Span>> = vec![Vec::new(); self.slots.len()];
        for (buf, span) in spans {
            if self.places[buf.0 as usize] == Place::Unused {
                let decl = plan.decl(buf);
                let slot = self.best_slot(decl.elem, decl.len, span, &mut taken);
                self.places[buf.0 as usize] = Place::Slot(slot);
            }
        }
    }

    /// The slot free for so long that wastes least: the smallest that is large enough, else the largest, grown; else a
    /// new one.
    fn best_slot(&mut self, elem: Elem, len: usize, span: Span, taken: &mut Vec<Vec<Span>>) -> usize {
        let free = |s: &usize| self.slots[*s].elem == elem && !taken[*s].iter().any(|other| other.meets(&span));
        let fits = (0..self.slots.len()).filter(|s| self.slots[*s].len >= len).filter(free);
        let chosen = fits
            .min_by_key(|s| self.slots[*s].len)
            .or_else(|| (0..self.slots.len()).filter(free).max_by_key(|s| self.slots[*s].len));
        let slot = chosen.unwrap_or_else(|| {
            self.slots.push(SlotDecl { elem, len });
            taken.push(Vec::new());
            self.slots.len() - 1
        });
        self.slots[slot].len = self.slots[slot].len.max(len);
        taken[slot].push(span);
        slot
    }

    /// Bytes on the device with 4 bytes an element: own buffers and slots.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let own = plan.bufs.iter().zip(&self.places).filter(|(_, p)| **p == Place::Own).map(|(b, _)| b.len as u64 * 4);
        own.sum::<u64>() + self.slots.iter().map(|s| s.len as u64 * 4).sum::<u64>()
    }
}

/// From the first to the last step that uses a buffer.
#[derive(Clone, Copy, Debug)]
struct Span {
    sequence: usize,
    first: usize,
    last: usize,
}

impl Span {
    /// Whether the two are ever alive together: sequences never run at the same time.
    fn meets(&self, other: &Span) -> bool {
        self.sequence == other.sequence && self.first <= other.last && other.first <= self.last
    }
}

/// The temporaries of a sequence.
fn spans(plan: &Plan, sequence: usize) -> Vec<(Buf, Span)> {
    let mut spans: BTreeMap<Buf, Span> = BTreeMap::new();
    for (i, step) in plan.sequences[sequence].steps.iter().enumerate() {
        for buf in step.bufs.iter().filter(|buf| plan.decl(**buf).life == Life::Temp) {
            spans.entry(*buf).or_insert(Span { sequence, first: i, last: i }).last = i;
        }
    }
    spans.into_iter().collect()
}
