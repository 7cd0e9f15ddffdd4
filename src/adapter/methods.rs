//! All methods there are, by the name `--method` takes.

use super::base::{OfTheBase, Tensors};
use super::dora::Dora;
use super::ia3::{self, Ia3};
use super::lisa::Lisa;
use super::lora::{Lora, LoraConfig, check_ratio, target_modules};
use super::method::{Adapter, Method};
use super::prefix::Prefix;
use super::prompt::{Prompt, Start};
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use serde::{Deserialize, Serialize};

/// What can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum Kind {
    /// Low-rank updates of the linears.
    #[default]
    Lora,
    /// LoRA whose rows have lengths of their own.
    Dora,
    /// Gains on keys, values and the feed-forward.
    Ia3,
    /// Embeddings before the text.
    Prompt,
    /// Keys and values before the text.
    Prefix,
    /// The weights of the norms.
    Norm,
    /// The biases.
    Bitfit,
    /// All of the last blocks.
    LastK,
    /// Everything.
    Full,
    /// Everything, a few blocks at a time.
    Lisa,
}

/// A method's settings as they are typed; each method reads its own.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub lora: LoraConfig,
    /// `--target-modules`; without it the method's own.
    pub target_modules: Option<String>,
    pub virtual_tokens: usize,
    /// `text`, `sample_vocab` or `random`.
    pub prompt_init: String,
    pub prompt_text: String,
    pub last_k: usize,
    pub lisa_blocks: usize,
    pub lisa_interval: u64,
}

impl Kind {
    pub const NAMES: [&'static str; 10] =
        ["lora", "dora", "ia3", "prompt", "prefix", "norm", "bitfit", "last-k", "full", "lisa"];

    pub const ALL: [Kind; 10] = [
        Kind::Lora,
        Kind::Dora,
        Kind::Ia3,
        Kind::Prompt,
        Kind::Prefix,
        Kind::Norm,
        Kind::Bitfit,
        Kind::LastK,
        Kind::Full,
        Kind::Lisa,
    ];

    pub fn name(self) -> &'static str {
        Kind::NAMES[self as usize]
    }

    /// The kind of a method by its name.
    pub fn of(method: &dyn Method) -> Kind {
        Kind::ALL.into_iter().find(|kind| kind.name() == method.name()).expect("every method is of a kind")
    }

    /// The learning rate to start from. Vectors and soft prompts want 10 to 60 times LoRA's (Liu et al. 2022: 3e-3 for
    /// (IA)³; Lester et al. 2021: 0.3 with Adafactor's relative steps, some 3e-2 with Adam's), all weights a fifth of
    /// it.
    pub fn lr(self) -> f64 {
        match self {
            Kind::Lora | Kind::Dora => 5e-4,
            Kind::Ia3 => 1e-2,
            Kind::Prompt => 3e-2,
            Kind::Prefix => 3e-2,
            Kind::Norm | Kind::Bitfit => 5e-3,
            Kind::LastK => 2e-4,
            Kind::Full | Kind::Lisa => 1e-4,
        }
    }

    /// The settings that it alone or with a few others reads, as the table of options calls them.
    pub fn options(self) -> &'static [&'static str] {
        const LOW_RANK: &[&str] = &[
            "rank",
            "alpha",
            "dropout",
            "rslora",
            "target_modules",
            "rank_pattern",
            "alpha_pattern",
            "loraplus_lr_ratio",
            "init_lora_weights",
        ];
        match self {
            Kind::Lora | Kind::Dora => LOW_RANK,
            Kind::Ia3 => &["target_modules"],
            Kind::Prompt => &["num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text"],
            Kind::Prefix => &["num_virtual_tokens"],
            Kind::LastK => &["last_k"],
            Kind::Lisa => &["lisa_blocks", "lisa_interval"],
            Kind::Norm | Kind::Bitfit | Kind::Full => &[],
        }
    }

    /// Refuses settings that were given, as the table of options calls them, and that none of these methods reads: what
    /// was asked for would be passed over in silence.
    pub fn refuse_unread(kinds: &[Kind], given: &[&str]) -> Result<()> {
        for setting in given {
            let readers: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.options().contains(setting)).collect();
            if readers.is_empty() || kinds.iter().any(|kind| readers.contains(kind)) {
                continue;
            }
            let names = |kinds: &[Kind]| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
            let what = format!("was given, and is no setting of {}", names(kinds));
            let hint = format!("leave it out, or choose a method that has it: {}", names(&readers));
            return Err(Error::setting(&setting.replace('_', "-"), what, hint));
        }
        Ok(())
    }

    /// PEFT has the method, and opens its adapter.
    pub fn in_peft(self) -> bool {
        !matches!(self, Kind::Bitfit | Kind::LastK | Kind::Full | Kind::Lisa)
    }

    /// What it trains can be folded into the weights.
    pub fn merges(self) -> bool {
        !matches!(self, Kind::Prompt | Kind::Prefix)
    }

    /// The method laid out for a model.
    pub fn adapter(self, spec: &ModelSpec, settings: &Settings) -> Result<Adapter> {
        let lora = || {
            let named = settings.target_modules.as_deref().unwrap_or("all-linear");
            Lora::new(spec, LoraConfig { modules: target_modules(named, spec)?, ..settings.lora.clone() })
        };
        Ok(match self {
            Kind::Lora => Adapter::new(spec, lora()?),
            Kind::Dora => Adapter::new(spec, Dora(lora()?)),
            Kind::Ia3 => {
                let named = settings.target_modules.as_deref().map(|named| target_modules(named, spec)).transpose()?;
                Adapter::new(spec, Ia3::new(spec, named.as_deref().unwrap_or(&ia3::MODULES)))
            }
            Kind::Prompt => Adapter::new(spec, Prompt::new(spec, virtual_tokens(settings)?, start(settings)?)),
            Kind::Prefix => Adapter::new(spec, Prefix::new(spec, virtual_tokens(settings)?)),
            Kind::Norm => of_the_base(spec, Tensors::Norms)?,
            Kind::Bitfit => of_the_base(spec, Tensors::Biases)?,
            Kind::LastK => of_the_base(spec, Tensors::Last(last_k(settings, spec)?))?,
            Kind::Full => of_the_base(spec, Tensors::All)?,
            Kind::Lisa => Adapter::new(spec, lisa(settings, spec)?),
        })
    }

    /// The method by which a run that asks for this one goes on from an adapter: the adapter's own. But what full
    /// tuning trained, or lisa, may go on a few blocks at a time: it is the same tensors.
    pub fn goes_on_as(self, own: Kind) -> Kind {
        match own {
            Kind::Full if self == Kind::Lisa => self,
            own => own,
        }
    }

    /// An adapter as a run that asks for this method goes on from it, with what is the run's and in no file: LoRA+'s
    /// ratio.
    pub fn go_on(self, adapter: Adapter, spec: &ModelSpec, settings: &Settings) -> Result<Adapter> {
        let own = Kind::of(&*adapter.method);
        if self.goes_on_as(own) != own {
            return self.adapter(spec, settings);
        }
        check_ratio(settings.lora.ratio)?;
        let method = adapter.method.with_ratio(settings.lora.ratio).unwrap_or(adapter.method.clone());
        Ok(Adapter { method, ..adapter })
    }
}

fn of_the_base(spec: &ModelSpec, which: Tensors) -> Result<Adapter> {
    let adapter = Adapter::new(spec, OfTheBase::new(which, spec));
    if adapter.parts.is_empty() {
        let what = format!("is {}, and a {} model has none", which.name(), spec.family);
        return Err(Error::setting("method", what, "norm or ia3 train as little"));
    }
    Ok(adapter)
}

fn lisa(settings: &Settings, spec: &ModelSpec) -> Result<Lisa> {
    let (blocks, interval, layers) = (settings.lisa_blocks, settings.lisa_interval, spec.layers);
    if !(1..=layers).contains(&blocks) {
        let what = format!("is {blocks}, the model has {layers} blocks");
        return Err(Error::setting("lisa-blocks", what, "2 is what the paper used"));
    }
    if interval == 0 {
        return Err(Error::setting("lisa-interval", "is 0, expected at least 1", "20 is a good start"));
    }
    Ok(Lisa { all: OfTheBase::new(Tensors::All, spec), blocks, interval, layers })
}

fn virtual_tokens(settings: &Settings) -> Result<usize> {
    match settings.virtual_tokens {
        n @ 1..=512 => Ok(n),
        n => Err(Error::setting("num-virtual-tokens", format!("is {n}, expected 1 to 512"), "8 to 32 are usual")),
    }
}

fn start(settings: &Settings) -> Result<Start> {
    match settings.prompt_init.as_str() {
        "text" if settings.prompt_text.trim().is_empty() => {
            let hint = "say what the task is, in a sentence";
            Err(Error::setting("prompt-tuning-init-text", "is empty", hint))
        }
        "text" => Ok(Start::Text(settings.prompt_text.clone())),
        "sample_vocab" => Ok(Start::Vocabulary),
        "random" => Ok(Start::Random),
        other => {
            let what = format!("is '{other}', expected text, sample_vocab or random");
            Err(Error::setting("prompt-tuning-init", what, "text is a good start"))
        }
    }
}

fn last_k(settings: &Settings, spec: &ModelSpec) -> Result<usize> {
    match settings.last_k {
        k if (1..=spec.layers).contains(&k) => Ok(k),
        k => {
            let what = format!("is {k}, the model has {} blocks", spec.layers);
            Err(Error::setting("last-k", what, "2 is a good start"))
        }
    }
}
