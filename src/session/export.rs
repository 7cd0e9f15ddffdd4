//! What leaves a session: adapters and merged models, read back and compared with the live model before they are
//! offered.

use super::Session;
use crate::adapter::merge::{self, Dtype, Target};
use crate::adapter::{self, Adapter, BaseName, Files, Format, Names};
use crate::data::{Message, Tokenizer};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::agreement::{Agreement, Logits, virtual_tokens};
use crate::model::{Base, Patches};
use crate::weights::{ModelFiles, Source};

/// The text that an export is compared on: prose, names and numbers, code, another language.
const PROBE: &str = "On 14 March 1879 Albert Einstein was born in Ulm. He wrote that E = mc^2, and much more. \
    Now list three fruits: apples, pears and plums. def add(a, b): return a + b. Das Wetter ist heute schön.";
const PROBE_TOKENS: usize = 96;

/// The share of what the adapter does that an export may lose where nothing but the order of sums has changed, and
/// bounds for adapters that do next to nothing or a lot. A wrong scale or order of rows is orders of magnitude beyond.
const LOST: f64 = 0.01;
const LOST_NATS: (f64, f64) = (1e-7, 1e-4);
/// Where weights are rounded that share may be so large, since one that is merged without the adapter loses all of it;
/// and nats that rounding alone may cost: 4 bits are coarse, rows in another order are still far beyond.
const ROUNDED: f64 = 0.5;
const ROUNDED_NATS: [(&[Dtype], f64); 2] =
    [(&[Dtype::F16, Dtype::Bf16, Dtype::Q8_0], 0.02), (&[Dtype::Q4_0, Dtype::Q4_1], 1.0)];

impl Session {
    /// The adapter in PEFT's layout.
    pub async fn adapter_files(&mut self) -> Result<Files> {
        let name = self.name.clone();
        self.exported(Format::Peft, &name).await
    }

    /// The adapter's files in a format; `tuned` is what the adapter is called.
    pub async fn exported(&mut self, format: Format, tuned: &str) -> Result<Files> {
        let flat = self.adapter_values().await?;
        let base = BaseName { name: &self.published, sha256: Some(&self.base.sha256) };
        let names = Names { base, tuned };
        adapter::files(format, self.tuned()?, &flat, self.spec(), names)
    }

    fn tuned(&self) -> Result<&Adapter> {
        let none = || Error::setting("adapter", "there is no adapter yet", "train one, or load one");
        self.adapter.as_ref().map(|(adapter, _)| adapter).ok_or_else(none)
    }

    /// The adapter's numbers; an error where there is none, or where they are none.
    async fn adapter_values(&mut self) -> Result<Vec<f32>> {
        let len = self.tuned()?.len;
        let (_, patches) = self.adapter.as_ref().expect("it has a layout");
        let flat = self.base.device.read(patches.params, 0, len).await?;
        if let Some(i) = flat.iter().position(|x| !x.is_finite()) {
            let what = format!("number {i} of the adapter is {}", flat[i]);
            return Err(Error::device(what, "this is a fault of the device or the program; nothing was written"));
        }
        Ok(flat)
    }

    /// The base with the adapter added in: `sink` gets file names and their next bytes.
    pub async fn merged(&mut self, target: &Target, sink: impl AsyncFnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
        let flat = self.adapter_values().await?;
        merge::merge(&self.files, self.tuned()?, &flat, target, sink).await
    }

    /// Bytes of all files of the merged model; an error where the base cannot be written so.
    pub async fn merged_size(&self, target: &Target) -> Result<u64> {
        merge::size(&self.files, self.tuned()?, target).await
    }

    /// Whether merging rounds the base's weights anew: those of a quantised base come in blocks that the sum does not
    /// fit.
    pub fn quantised(&self) -> bool {
        !["f32", "f16", "bf16"].contains(&self.base.decoder.main_format().name())
    }

    /// Reads an exported adapter back and compares it with the one on the model.
    pub async fn check_adapter(&mut self, files: &[Source]) -> Result<Agreement> {
        let (again, flat) = adapter::read(files, self.spec()).await?;
        let ids = self.probe_ids()?;
        let again = self.laid_out(&again, &flat).await?;
        let [live, plain] = self.probed(&ids).await?;
        let other = self.logits(Some(&again), &ids).await?;
        agreed(Agreement::new(&ids, &live, &plain, &other), Dtype::F32, &name_of(files))
    }

    /// Opens a merged model, on the CPU, and compares it with the live one. What rounding costs is told; what it cannot
    /// cost is an error.
    pub async fn check_merged(&mut self, files: &ModelFiles, dtype: Dtype) -> Result<Agreement> {
        let ids = self.probe_ids()?;
        let name = files.checkpoint().name().to_string();
        if probe_ids(&Tokenizer::new(files.tokenizer().clone())?, self.spec().context)? != ids {
            let what = format!("{name}: its tokenizer makes other tokens of the probe text than the base's");
            return Err(Error::device(what, "do not use it; this is a fault of the program"));
        }
        let [live, plain] = self.probed(&ids).await?;
        let mut merged = Base::load(files, Device::cpu(), |_, _| {}).await?;
        let other = Logits::new(&mut merged, ids.len()).of(&mut merged, None, &ids).await?;
        agreed(Agreement::new(&ids, &live, &plain, &other), dtype, &name)
    }

    /// Logits with the adapter and without.
    async fn probed(&mut self, ids: &[u32]) -> Result<[Vec<f32>; 2]> {
        let live = self.adapter.as_ref().map(|(_, patches)| patches.clone());
        Ok([self.logits(live.as_ref(), ids).await?, self.logits(None, ids).await?])
    }

    async fn logits(&mut self, patches: Option<&Patches>, ids: &[u32]) -> Result<Vec<f32>> {
        let n = ids.len() + virtual_tokens(patches);
        let Session { logits, base, .. } = self;
        logits.entry(n).or_insert_with(|| Logits::new(base, n)).of(base, patches, ids).await
    }

    fn probe_ids(&self) -> Result<Vec<u32>> {
        probe_ids(&self.tokenizer, self.spec().context)
    }
}

fn name_of(files: &[Source]) -> String {
    files.last().map_or("the adapter", Source::file_name).to_string()
}

fn agreed(agreement: Agreement, dtype: Dtype, name: &str) -> Result<Agreement> {
    if !agreement.loss.is_finite() {
        let what = format!("the model with this adapter computes no numbers (loss {} on a probe text)", agreement.loss);
        return Err(Error::device(what, "take an earlier adapter, or train again with a lower --lr"));
    }
    let allowed = match ROUNDED_NATS.iter().find(|(dtypes, _)| dtypes.contains(&dtype)) {
        None => (LOST * agreement.moved).clamp(LOST_NATS.0, LOST_NATS.1),
        Some((_, nats)) => (ROUNDED * agreement.moved).max(*nats),
    };
    // A NaN is not at most anything.
    if agreement.kl <= allowed {
        return Ok(agreement);
    }
    let what = format!("{name}, read back, is another model: KL {:.1e} nats, allowed {allowed:.0e}", agreement.kl);
    Err(Error::device(what, "do not use it; this is a fault of the device or the program"))
}

/// The probe text as the model would meet it: in a conversation where it has a template.
fn probe_ids(tokenizer: &Tokenizer, context: usize) -> Result<Vec<u32>> {
    let mut ids = match tokenizer.chat_template() {
        Some(_) => tokenizer.encode_chat(&[Message::new("user", PROBE)])?,
        None => tokenizer.encode(PROBE, true)?,
    };
    ids.truncate(PROBE_TOKENS.min(context));
    if ids.is_empty() {
        return Err(Error::device(
            "the tokenizer makes no token of the probe text",
            "check the model's tokenizer files",
        ));
    }
    Ok(ids)
}
