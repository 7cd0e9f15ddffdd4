//! Answers and losses of the model for items of a test, as `eval` judges them.

use super::{SEQUENCES, Session};
use crate::data::{Batches, Dataset, Message, PackOptions, Record, Records};
use crate::error::{Error, Result};
use crate::eval::{Answered, Item, Judge, Mark, System, Task, general, score, with_answer, with_shots};
use crate::model::generate::Sampling;
use crate::model::{Base, Inputs};
use crate::train::{ExampleLoss, check_tokens, evaluation};
use serde::Serialize;

/// How items are put to the model.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Rows computed together, where labels or texts are scored.
    pub batch_size: usize,
    /// Tokens of an answer; without it, enough for the longest that is expected.
    pub max_new_tokens: Option<usize>,
    /// Texts longer than this are cut.
    pub seq_len: usize,
    /// Everything random follows from it.
    pub seed: u64,
}

/// Loss on plain sentences of no task, without and with the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Forgetting {
    pub sentences: usize,
    pub before: f64,
    pub after: f64,
    /// What was lost: nats a token, above 0 where the model has become worse.
    pub change: score::Estimate,
    pub verdict: &'static str,
}

/// What a progress bar is told: things done, things to do.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// More rows are computed together where they are short.
const TOKENS: usize = 2048;

impl Session {
    /// The loss of every example, in their order; examples without targets have none. `progress` counts batches.
    pub async fn example_losses(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        seq_len: usize,
        adapted: bool,
        progress: Progress<'_>,
    ) -> Result<Vec<ExampleLoss>> {
        let batches = self.evaluation_batches(data, batch_size, seq_len, adapted).await?;
        let (io, sequence, _) = self.evaluation.as_ref().expect("just made");
        evaluation::example_losses(&mut self.base, io, *sequence, &batches, data.examples.len(), progress).await
    }

    /// Rows of `seq_len` tokens of text, behind the adapter's virtual ones where it is asked for; what computes them is
    /// ready.
    pub(super) async fn evaluation_batches(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        seq_len: usize,
        adapted: bool,
    ) -> Result<Batches> {
        let before = if adapted { self.virtual_ids() } else { Vec::new() };
        self.check_length(seq_len, before.len())?;
        let t = seq_len + before.len();
        check_tokens(batch_size, t)?;
        let options = PackOptions { b: batch_size, t, packing: true, shuffle: false, seed: 0 };
        let batches = Batches::new(&data.prefixed(&before), options)?;
        self.prepare_evaluation(batch_size, t, adapted).await?;
        Ok(batches)
    }

    /// Sequence and inputs of evaluation for a shape; those of the last shape are kept.
    async fn prepare_evaluation(&mut self, batch_size: usize, seq_len: usize, adapted: bool) -> Result<()> {
        let shape = (batch_size, seq_len, adapted);
        if self.evaluation.as_ref().is_some_and(|(.., s)| *s == shape) {
            return Ok(());
        }
        let Base { plan, device, decoder, .. } = &mut self.base;
        let io = Inputs::declare(plan, &decoder.spec, batch_size * seq_len, seq_len);
        let patches = self.adapter.as_ref().map(|(_, p)| p).filter(|_| adapted);
        let sequences = decoder.loss_sequences(plan, &io, patches, None);
        device.prepare(plan).await?;
        io.write_tables(device, &decoder.spec, seq_len);
        self.evaluation = Some((io, sequences.evaluate, shape));
        Ok(())
    }

    /// Answers all items, with worked examples before each question where some are given. Items that do not fit the
    /// model's context are answered by nothing, which is wrong.
    pub async fn answer(
        &mut self,
        judge: &Judge,
        items: &[Item],
        shots: &[&Item],
        asking: &Asking,
        adapted: bool,
        progress: Progress<'_>,
    ) -> Result<Vec<Answered>> {
        match judge.task {
            Task::Classification => self.choose(judge, items, shots, adapted, progress).await,
            Task::Text => self.read(judge, items, asking, adapted, progress).await,
            _ => self.write(judge, items, shots, asking, adapted, progress).await,
        }
    }

    /// For each item the label that is likeliest as its whole answer: the summed log-probability of the label's tokens
    /// and of the end behind them, given the prompt.
    async fn choose(
        &mut self,
        judge: &Judge,
        items: &[Item],
        shots: &[&Item],
        adapted: bool,
        progress: Progress<'_>,
    ) -> Result<Vec<Answered>> {
        let asked: Vec<Record> = items.iter().map(|item| self.shown(item, shots)).collect();
        let each = |record: &Record| judge.labels.iter().map(|label| with_answer(record, label)).collect::<Vec<_>>();
        let all: Vec<Record> = asked.iter().flat_map(each).collect();
        let data = self.encode(&Records::of("labels", all), self.room(adapted))?;
        let losses = self.losses_of(&data, adapted, progress).await?;
        let k = judge.labels.len();
        let chosen = |(i, item): (usize, &Item)| {
            let of = |label: usize| (losses[i * k + label].loss, data.examples[i * k + label].truncated);
            let cut = (0..k).any(|label| of(label).1);
            let best = (0..k).min_by(|a, b| of(*a).0.total_cmp(&of(*b).0)).filter(|_| !cut);
            let answer = best.map_or(String::new(), |label| judge.labels[label].clone());
            let mut mark = judge.mark(item, &answer);
            if cut {
                mark.why = Some(self.too_long(data.examples[i * k].full_len, adapted));
            }
            Answered { answer, mark }
        };
        Ok(items.iter().enumerate().map(chosen).collect())
    }

    /// Rows as long as the longest example needs, and as many as make a good batch.
    async fn losses_of(&mut self, data: &Dataset, adapted: bool, progress: Progress<'_>) -> Result<Vec<ExampleLoss>> {
        let longest = data.examples.iter().map(|e| e.ids.len()).max().unwrap_or(2);
        let seq_len = longest.next_multiple_of(64).min(self.room(adapted));
        self.example_losses(data, (TOKENS / seq_len).max(1), seq_len, adapted, progress).await
    }

    fn too_long(&self, tokens: usize, adapted: bool) -> String {
        format!("{tokens} tokens, and the model has room for {} with the answer", self.room(adapted))
    }

    fn shown(&self, item: &Item, shots: &[&Item]) -> Record {
        let shots: Vec<&Record> = shots.iter().map(|shot| &shot.record).collect();
        with_shots(&item.record, &shots, self.tokenizer.chat_template().is_some())
    }

    async fn read(
        &mut self,
        judge: &Judge,
        items: &[Item],
        asking: &Asking,
        adapted: bool,
        progress: Progress<'_>,
    ) -> Result<Vec<Answered>> {
        let records = Records::of("texts", items.iter().map(|i| with_answer(&i.record, &i.expected)).collect());
        let data = self.encode(&records, asking.seq_len)?;
        let losses = self.example_losses(&data, asking.batch_size, asking.seq_len, adapted, progress).await?;
        // A long text is several examples; their record is told by its place.
        let mut sums = vec![ExampleLoss::default(); items.len()];
        for (example, one) in data.examples.iter().zip(&losses) {
            let sum = &mut sums[example.line as usize - 1];
            (sum.loss, sum.tokens, sum.hits) = (sum.loss + one.loss, sum.tokens + one.tokens, sum.hits + one.hits);
        }
        let mark = |l: &ExampleLoss| judge.mark_loss(l.loss, l.tokens as f64, l.hits as f64);
        Ok(sums.iter().map(|l| Answered { answer: String::new(), mark: mark(l) }).collect())
    }

    /// The likeliest token each time, several items at a time.
    async fn write(
        &mut self,
        judge: &Judge,
        items: &[Item],
        shots: &[&Item],
        asking: &Asking,
        adapted: bool,
        progress: Progress<'_>,
    ) -> Result<Vec<Answered>> {
        let sampling = Sampling { max_new_tokens: self.answer_room(items, asking)?, ..Sampling::default() };
        let prompts: Vec<Vec<u32>> =
            items.iter().map(|item| self.ids_before_answer(&self.shown(item, shots))).collect::<Result<_>>()?;
        // Prompts of like length are decoded together: a group lasts as long as its longest.
        let mut order: Vec<usize> = (0..items.len()).filter(|i| prompts[*i].len() < self.room(adapted)).collect();
        order.sort_by_key(|i| prompts[*i].len());
        let nothing = |i: usize| {
            let mark = Mark { why: Some(self.too_long(prompts[i].len(), adapted)), ..judge.mark(&items[i], "") };
            Answered { answer: String::new(), mark }
        };
        let mut all: Vec<Answered> = (0..items.len()).map(nothing).collect();
        for (done, group) in order.chunks(SEQUENCES).enumerate() {
            progress((done * SEQUENCES) as u64, items.len() as u64);
            let ids: Vec<Vec<u32>> = group.iter().map(|i| prompts[*i].clone()).collect();
            let generated = self.generate_ids(&ids, adapted, &sampling, |_, _| true).await?;
            for (i, g) in group.iter().zip(&generated) {
                let answer = self.text(g).text;
                all[*i] = Answered { mark: judge.mark(&items[*i], &answer), answer };
            }
        }
        Ok(all)
    }

    /// Enough for the longest expected answer, and some more to see answers that do not end.
    fn answer_room(&self, items: &[Item], asking: &Asking) -> Result<usize> {
        if let Some(tokens) = asking.max_new_tokens {
            return Ok(tokens);
        }
        let mut longest = 0;
        for item in items {
            longest = longest.max(self.tokenizer.encode(&item.expected, false)?.len());
        }
        Ok(longest + longest / 4 + 8)
    }

    /// The ids that stand before the last answer of a record.
    fn ids_before_answer(&self, record: &Record) -> Result<Vec<u32>> {
        if let (Some(turns), true) = (record.turns(), self.tokenizer.chat_template().is_some()) {
            let before: &[Message] = &turns.messages[..turns.messages.len().saturating_sub(1)];
            return self.tokenizer.encode_chat(before);
        }
        match record.plain() {
            Some((before, _)) => self.tokenizer.encode(&before, true),
            None => {
                Err(Error::setting("model", "has no chat template, and the data are chats", "use an instruct model"))
            }
        }
    }

    /// Worked examples for a base model: up to `most`, as many as leave every question its room, drawn by the seed; of
    /// a classification one of each label in turn.
    pub fn shots<'a>(
        &self,
        judge: &Judge,
        items: &[Item],
        known: &'a [Item],
        most: usize,
        asking: &Asking,
    ) -> Result<Vec<&'a Item>> {
        let shots = drawn(judge, known, most, asking.seed);
        let room =
            if judge.labels.is_empty() { self.answer_room(items, asking)? } else { self.longest(&judge.labels)? };
        let mut longest = 0;
        let mut questions: Vec<&Item> = Vec::new();
        for item in items {
            let tokens = self.ids_before_answer(&item.record)?.len();
            if tokens > longest {
                longest = tokens;
                questions = vec![item];
            }
        }
        let fits = |count: &usize| -> bool {
            let ids = questions.iter().map(|q| self.ids_before_answer(&self.shown(q, &shots[..*count])));
            ids.into_iter().all(|ids| ids.is_ok_and(|ids| ids.len() + room + 2 <= self.spec().context))
        };
        let count = (0..=shots.len()).rev().find(fits).unwrap_or(0);
        Ok(shots[..count].to_vec())
    }

    fn longest(&self, texts: &[String]) -> Result<usize> {
        let mut longest = 0;
        for text in texts {
            longest = longest.max(self.tokenizer.encode(text, false)?.len());
        }
        Ok(longest)
    }

    /// The loss on plain sentences before and after: what tuning cost. The adapter has to be on the model.
    pub async fn forgetting(&mut self, seed: u64) -> Result<Forgetting> {
        let texts = general::sentences().map(|s| Record::Text { text: s.into(), splits: false }).collect();
        let data = self.encode(&Records::of("general sentences", texts), self.room(true).min(128))?;
        let before = self.losses_of(&data, false, &mut |_, _| {}).await?;
        let after = self.losses_of(&data, true, &mut |_, _| {}).await?;
        let counts = |all: &[ExampleLoss]| -> Vec<score::Counts> {
            all.iter().map(|l| vec![(0, l.loss), (1, l.tokens as f64)]).collect()
        };
        let figure = [score::Figure { name: "loss", rule: score::Rule::Mean(0, 1) }];
        let [before, after] = [before, after].map(|l| score::measure(&figure, 2, &counts(&l), seed).remove(0));
        let change = score::difference(&after, &before);
        let verdict = match change {
            c if !c.shown() => "no difference shown",
            c if c.value > 0.0 => "worse: it has forgotten",
            _ => "better",
        };
        let (before, after) = (before.estimate.value, after.estimate.value);
        Ok(Forgetting { sentences: data.examples.len(), before, after, change, verdict })
    }
}

/// Items in an order drawn by the seed; labels in turn.
fn drawn<'a>(judge: &Judge, known: &'a [Item], most: usize, seed: u64) -> Vec<&'a Item> {
    let mut order: Vec<usize> = (0..known.len()).collect();
    order.sort_by_key(|i| (crate::num::uniform(seed, u64::MAX, *i as u64) * 2f64.powi(52)) as u64);
    if !judge.labels.is_empty() {
        let mut met = vec![0; judge.labels.len() + 1];
        let mut turn = |i: &usize| {
            let label = judge.label(&known[*i].expected).unwrap_or(judge.labels.len());
            met[label] += 1;
            (met[label], label)
        };
        let mut turns: Vec<((usize, usize), usize)> = order.iter().map(|i| (turn(i), *i)).collect();
        turns.sort();
        order = turns.into_iter().map(|(_, i)| i).collect();
    }
    order.into_iter().take(most).map(|i| &known[i]).collect()
}

/// The constant answer that does best: the most frequent answers of the training data (or, where there are none, of the
/// test itself) are all tried. Returns its system; for function calls the constant is no call.
pub fn constant(judge: &Judge, items: &[Item], known: &[Item]) -> Option<System> {
    const TRIED: usize = 50;
    if judge.task == Task::Text {
        return None;
    }
    let source = if known.is_empty() { items } else { known };
    let mut counted = std::collections::BTreeMap::new();
    source.iter().for_each(|item| *counted.entry(item.expected.trim()).or_insert(0) += 1);
    let mut often: Vec<(&str, usize)> = counted.into_iter().collect();
    often.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut tried: Vec<&str> = often.iter().take(TRIED).map(|(answer, _)| *answer).collect();
    if judge.task == Task::Bfcl {
        tried = vec![""];
    }
    let main = judge.figures.first()?;
    // Of API calls the weak figure is the one that a constant plays.
    let main = judge.figures.iter().find(|f| f.name == "ast_accuracy").unwrap_or(main);
    let value = |answers: &[Answered]| main.value(&score::sum(judge.width, answers.iter().map(|a| &a.mark.counts)));
    let answers = |answer: &str| -> Vec<Answered> {
        items.iter().map(|item| Answered { answer: answer.into(), mark: judge.mark(item, answer) }).collect()
    };
    let best =
        tried.iter().map(|answer| (answers(answer), *answer)).max_by(|a, b| value(&a.0).total_cmp(&value(&b.0)))?;
    let from = if known.is_empty() {
        "the best of the test's own answers, so an upper bound"
    } else {
        "the best here of the training data's answers"
    };
    let shown: String = best.1.chars().take(80).collect();
    Some(System { name: "constant".into(), note: Some(format!("{shown:?}, {from}")), answers: best.0 })
}
