//! What a session will probably be asked for, as plans: a GPU compiles what they run while the weights are read.

use crate::error::Result;
use crate::model::Base;
use crate::model::generate::Generator;
use crate::plan::Plan;
use crate::train::{TrainOptions, planned};

/// What a session will probably be asked for. A guess: it may be asked for anything.
#[derive(Clone, Debug)]
pub struct Likely {
    /// A run with these options: what is compiled hangs on the method, hardly on its numbers.
    pub run: Option<TrainOptions>,
    /// Answers, with and without an adapter of the run's method.
    pub answers: bool,
}

impl Default for Likely {
    /// A run as it is when nothing is set, and answers before and after it.
    fn default() -> Self {
        Likely { run: Some(TrainOptions::default()), answers: true }
    }
}

impl Likely {
    pub const NOTHING: Likely = Likely { run: None, answers: false };
    pub const ANSWERS: Likely = Likely { run: None, answers: true };

    pub fn run(options: &TrainOptions) -> Likely {
        Likely { run: Some(options.clone()), answers: false }
    }

    /// What cannot be planned is no guess; who asks for it will be told why.
    pub(super) fn plans(&self, base: &Base) -> Vec<Plan> {
        self.try_plans(base).unwrap_or_default()
    }

    fn try_plans(&self, base: &Base) -> Result<Vec<Plan>> {
        let options = self.run.clone().unwrap_or_default();
        options.check()?;
        let adapter = options.method.adapter(base.spec(), &options.settings()?)?;
        let run = self.run.iter().map(|options| planned::sketch(base, &adapter, options));
        let answers = self.answers.then(|| {
            let mut plan = base.plan.clone();
            let patches = adapter.declare(&mut plan, false);
            Generator::sketch(&base.decoder, plan, &patches)
        });
        Ok(run.chain(answers).collect())
    }
}
