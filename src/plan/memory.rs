//! Memory of a plan: temporaries that are never alive together share a slot.
//!
//! Slots are shared across sequences as well, since sequences never run at the same time. A slot holds one kind of
//! element, and every tensor is a buffer of its own on the GPU (wgpu tracks hazards per buffer).

use super::{Elem, Life, Plan};

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
        for sequence in self.sequences..plan.sequences.len() {
            self.place_sequence(plan, sequence);
        }
        self.sequences = plan.sequences.len();
    }

    fn place_sequence(&mut self, plan: &Plan, sequence: usize) {
        let steps = &plan.sequences[sequence].steps;
        let mut last_use = std::collections::HashMap::new();
        for (i, step) in steps.iter().enumerate() {
            for buf in &step.bufs {
                last_use.insert(*buf, i);
            }
        }
        let mut busy = vec![false; self.slots.len()];
        for (i, step) in steps.iter().enumerate() {
            for buf in &step.bufs {
                let decl = plan.decl(*buf);
                if decl.life == Life::Temp && self.places[buf.0 as usize] == Place::Unused {
                    let slot = self.best_slot(decl.elem, decl.len, &mut busy);
                    self.places[buf.0 as usize] = Place::Slot(slot);
                }
            }
            for buf in &step.bufs {
                if let Place::Slot(slot) = self.places[buf.0 as usize]
                    && last_use[buf] == i
                {
                    busy[slot] = false;
                }
            }
        }
    }

    /// The free slot that wastes least: the smallest that is large enough, else the largest, grown; else a new one.
    fn best_slot(&mut self, elem: Elem, len: usize, busy: &mut Vec<bool>) -> usize {
        let free = |s: &usize| !busy[*s] && self.slots[*s].elem == elem;
        let fits = (0..self.slots.len()).filter(free).filter(|s| self.slots[*s].len >= len);
        let chosen = fits
            .min_by_key(|s| self.slots[*s].len)
            .or_else(|| (0..self.slots.len()).filter(free).max_by_key(|s| self.slots[*s].len));
        let slot = chosen.unwrap_or_else(|| {
            self.slots.push(SlotDecl { elem, len });
            busy.push(false);
            self.slots.len() - 1
        });
        self.slots[slot].len = self.slots[slot].len.max(len);
        busy[slot] = true;
        slot
    }

    /// Bytes on the device with 4 bytes an element: own buffers and slots.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let own = plan.bufs.iter().zip(&self.places).filter(|(_, p)| **p == Place::Own).map(|(b, _)| b.len as u64 * 4);
        own.sum::<u64>() + self.slots.iter().map(|s| s.len as u64 * 4).sum::<u64>()
    }
}
