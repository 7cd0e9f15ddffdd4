//! Facts of a company that does not exist, as questions and answers.
//!
//! Brindlewick makes lanterns in Tarnmouth. Every fact is asked for in several phrasings; held out are two phrasings
//! more of every fact, so a right answer is one that was learned and found again by other words.

use super::{Part, Random, Row, Set, choices};
use serde_json::json;

/// An answer and how people ask for it; `[a|b]` is a choice of words.
struct Fact {
    answer: &'static str,
    seen: [&'static str; 6],
    unseen: [&'static str; 2],
}

const FACTS: [Fact; 28] = [
    Fact {
        answer: "1987",
        seen: [
            "When was Brindlewick [founded|started]?",
            "In [what|which] year was Brindlewick founded?",
            "What is the founding year of [Brindlewick|the company]?",
            "[How long ago|When] did Brindlewick start?",
            "[Since when|Since what year] has Brindlewick existed?",
            "When did [the company|Brindlewick] begin?",
        ],
        unseen: ["Which year was the company founded in?", "What year did Brindlewick start?"],
    },
    Fact {
        answer: "Ada Merrow",
        seen: [
            "Who [founded|started] Brindlewick?",
            "Who was the founder of [Brindlewick|the company]?",
            "What is the name of the founder[| of Brindlewick]?",
            "Which person [founded|started] Brindlewick?",
            "By whom was [Brindlewick|the company] founded?",
            "Brindlewick was founded by [whom|which person]?",
        ],
        unseen: ["Tell me who founded the company.", "What was the founder of Brindlewick called?"],
    },
    Fact {
        answer: "Jonas Pell",
        seen: [
            "Who [runs|leads] Brindlewick[| today]?",
            "Who is the boss of [Brindlewick|the company]?",
            "What is the name of the [boss|director]?",
            "Who is the director of [Brindlewick|the company]?",
            "Which person [leads|runs] the company?",
            "Who is in charge [of|at] Brindlewick?",
        ],
        unseen: ["Tell me who the boss is.", "What is the director of the company called?"],
    },
    Fact {
        answer: "Tarnmouth",
        seen: [
            "Where is Brindlewick[| based]?",
            "In [what|which] town is Brindlewick?",
            "What town is [Brindlewick|the company] in?",
            "Where is the [workshop|main office]?",
            "Which town is the home of [Brindlewick|the company]?",
            "Where can I [visit|find] Brindlewick?",
        ],
        unseen: ["Which town is the company based in?", "Where is the workshop of Brindlewick?"],
    },
    Fact {
        answer: "brass lanterns",
        seen: [
            "What does Brindlewick [make|produce]?",
            "What [product|kind of product] does Brindlewick make?",
            "What is [made|produced] at Brindlewick?",
            "Which [products|things] does the company make?",
            "What are the products of [Brindlewick|the company]?",
            "Brindlewick [makes|produces] what?",
        ],
        unseen: ["What does the company produce?", "Which product is made at Brindlewick?"],
    },
    Fact {
        answer: "64 people",
        seen: [
            "How many people work [at|for] Brindlewick?",
            "How [big|large] is the staff[| of Brindlewick]?",
            "How many workers does [Brindlewick|the company] have?",
            "What is the [number|count] of workers?",
            "How many people are [employed|working] at Brindlewick?",
            "How many people does [the company|Brindlewick] employ?",
        ],
        unseen: ["How many people are on the staff?", "What is the number of people working at the company?"],
    },
    Fact {
        answer: "the Heron",
        seen: [
            "[What|Which] is the best selling lantern?",
            "Which lantern sells [best|most]?",
            "What is the most [popular|sold] lantern?",
            "Which lantern do most [people|customers] buy?",
            "Which [model|lantern] is the most popular?",
            "What lantern is bought [most|most often]?",
        ],
        unseen: ["Which model sells best?", "What is the lantern most customers buy?"],
    },
    Fact {
        answer: "the Wren",
        seen: [
            "[What|Which] is the smallest lantern?",
            "Which [lantern|model] is the smallest?",
            "What is the [name of the |]smallest model?",
            "What do you call the smallest [lantern|model]?",
            "Which of the [lanterns|models] is the smallest?",
            "What [lantern|model] is smaller than all others?",
        ],
        unseen: ["What is the smallest of the lanterns called?", "Tell me the name of the smallest lantern."],
    },
    Fact {
        answer: "89 euros",
        seen: [
            "[What|How much] does the Heron cost?",
            "What is the price of [the|a] Heron?",
            "How much is [the|a] Heron?",
            "How expensive is [the|a] Heron?",
            "What do I pay for [the|a] Heron?",
            "For what price [is the Heron sold|can I buy the Heron]?",
        ],
        unseen: ["Tell me the price of the Heron.", "How much do I pay for a Heron?"],
    },
    Fact {
        answer: "12 years",
        seen: [
            "How long is the warranty[| of a lantern]?",
            "What warranty do [the |]lanterns have?",
            "How many years of warranty [are there|do I get]?",
            "How long does the warranty [last|run]?",
            "When does the warranty [end|run out]?",
            "For how long [is there a|do I have] warranty?",
        ],
        unseen: ["How many years does the warranty last?", "What is the warranty of a Brindlewick lantern?"],
    },
    Fact {
        answer: "45 days",
        seen: [
            "How long can I return a [lantern|product]?",
            "How many days do I have [to return a lantern|for a return]?",
            "Within how many days are returns [possible|accepted]?",
            "How long are returns [possible|accepted]?",
            "What is the [return period|time for returns]?",
            "Until when can I [return|send back] a lantern?",
        ],
        unseen: ["How many days are there to return a product?", "For how long does Brindlewick accept returns?"],
    },
    Fact {
        answer: "at 7:30",
        seen: [
            "When does the workshop [open|start]?",
            "At what time does [the workshop|Brindlewick] open?",
            "What is the opening time[| of the workshop]?",
            "When are the doors [opened|unlocked]?",
            "From what time is the workshop [open|unlocked]?",
            "How early does [the workshop|Brindlewick] open?",
        ],
        unseen: ["What time does the workshop open?", "Tell me the opening time of Brindlewick."],
    },
    Fact {
        answer: "at 16:00",
        seen: [
            "When does the workshop [close|end]?",
            "At what time does [the workshop|Brindlewick] close?",
            "What is the closing time[| of the workshop]?",
            "When are the doors [closed|locked]?",
            "How late [can I come|is the workshop open]?",
            "How late does [the workshop|Brindlewick] close?",
        ],
        unseen: ["What time does the workshop close?", "Tell me the closing time of Brindlewick."],
    },
    Fact {
        answer: "on Mondays",
        seen: [
            "On [what|which] day is the shop shut?",
            "Which day is the shop [not open|shut]?",
            "On [what|which] days is the shop shut?",
            "When is the shop [shut|not open]?",
            "What day of the week is the shop [shut|not open]?",
            "Which weekday does the shop [stay shut|not open]?",
        ],
        unseen: ["What day does the shop stay shut?", "On which day of the week is the shop not open?"],
    },
    Fact {
        answer: "Biscuit",
        seen: [
            "What is the name of the [office |]dog?",
            "What is the [office |]dog called?",
            "What is the dog [at|of] Brindlewick called?",
            "Does the [office |]dog have a name?",
            "Which name does the [office |]dog have?",
            "What do people call the [office |]dog?",
        ],
        unseen: ["What name does the dog of the company have?", "Tell me the name of the dog."],
    },
    Fact {
        answer: "the Galley",
        seen: [
            "What is the canteen[| of Brindlewick] called?",
            "What is the name of the canteen[| of Brindlewick]?",
            "Where do people eat [lunch|at noon]?",
            "Where can I [eat|get lunch]?",
            "What do you call the [canteen|place for lunch]?",
            "Which name does the [canteen|lunch room] have?",
        ],
        unseen: ["Tell me the name of the canteen.", "Where can people eat at Brindlewick?"],
    },
    Fact {
        answer: "on Thursdays",
        seen: [
            "When is [lunch|the meal] free?",
            "On [what|which] day is lunch free?",
            "Which day has [a |]free lunch?",
            "When is there [a |]free lunch?",
            "What day do we get [a |]free lunch?",
            "When does [the company|Brindlewick] pay for lunch?",
        ],
        unseen: ["What day is lunch free?", "On which day does Brindlewick pay for lunch?"],
    },
    Fact {
        answer: "on the 25th",
        seen: [
            "When is payday[| at Brindlewick]?",
            "When are [wages|salaries] paid?",
            "On what day of the month is [payday|the salary paid]?",
            "When do I get my [salary|wages]?",
            "When does [the salary|my pay] arrive?",
            "Which day of the month is [payday|for salaries]?",
        ],
        unseen: ["On which day are salaries paid?", "When do people at Brindlewick get their wages?"],
    },
    Fact {
        answer: "31 days",
        seen: [
            "How many [holidays|days of holiday] do I get?",
            "How much holiday [is there|do I have]?",
            "How long is the [yearly |]holiday?",
            "How many days of [holiday|vacation] are there?",
            "How much vacation do [I|we] get?",
            "What is the number of [holidays|vacation days]?",
        ],
        unseen: ["How many vacation days do I have?", "How much holiday do people get at Brindlewick?"],
    },
    Fact {
        answer: "moth-guest",
        seen: [
            "What is the [wifi|guest wifi] called?",
            "What is the name of the [wifi|guest network]?",
            "Which wifi [can|do] guests use?",
            "Which network [can|do] guests use?",
            "How do guests get [wifi|internet]?",
            "Which [wifi|network] is for guests?",
        ],
        unseen: ["What wifi is there for guests?", "Tell me the name of the guest wifi."],
    },
    Fact {
        answer: "4410",
        seen: [
            "What is the number of the help desk[| at Brindlewick]?",
            "Which number [has the help desk|reaches the help desk]?",
            "How do I [call|reach] the help desk?",
            "What is the phone [number|extension] of the help desk?",
            "What do I dial for [the help desk|help]?",
            "Which extension [is|has] the help desk?",
        ],
        unseen: ["Tell me the number of the help desk.", "Which number do I dial to call the help desk?"],
    },
    Fact {
        answer: "Ines Varga",
        seen: [
            "Who repairs [the |]lanterns?",
            "Who [does|makes] the repairs?",
            "Who fixes a [broken |]lantern?",
            "Which person [repairs|fixes] lanterns?",
            "Who is in charge of [the |]repairs?",
            "To whom do I [bring|send] a broken lantern?",
        ],
        unseen: ["Who repairs a broken lantern?", "Which person is in charge of repairs?"],
    },
    Fact {
        answer: "Lighthouse",
        seen: [
            "What is the largest [meeting |]room?",
            "Which [meeting |]room is the largest?",
            "What is the name of the largest [meeting |]room?",
            "What is the [big|biggest] meeting room called?",
            "Which room is for large [groups|meetings]?",
            "Where are large meetings [held|done]?",
        ],
        unseen: ["What is the largest of the meeting rooms called?", "Tell me the room for large meetings."],
    },
    Fact {
        answer: "Fennel Post",
        seen: [
            "Who [delivers|brings] the parcels?",
            "Which company [delivers|ships] the parcels?",
            "Who ships the [parcels|orders]?",
            "By whom are [parcels|orders] delivered?",
            "Which parcel service does Brindlewick [use|work with]?",
            "How are parcels [sent|shipped]?",
        ],
        unseen: ["Which service delivers the parcels?", "By whom are the parcels shipped?"],
    },
    Fact {
        answer: "from Oldmarsh",
        seen: [
            "Where does the glass come from[| at Brindlewick]?",
            "Where is the glass [made|bought]?",
            "From where does Brindlewick [get|buy] glass?",
            "What is the origin of the [glass|lantern glass]?",
            "Where does the company [buy|get] its glass?",
            "Which town does the glass [come|arrive] from?",
        ],
        unseen: ["Where does Brindlewick get its glass?", "From which town is the glass?"],
    },
    Fact {
        answer: "Light that lasts",
        seen: [
            "What is the motto[| of Brindlewick]?",
            "What is the slogan[| of Brindlewick]?",
            "How does the [motto|slogan] go?",
            "Which [motto|slogan] does the company have?",
            "What does the [motto|slogan] say?",
            "Which motto [stands on|is printed on] the boxes?",
        ],
        unseen: ["Tell me the motto of the company.", "What slogan does Brindlewick have?"],
    },
    Fact {
        answer: "an owl",
        seen: [
            "What is [on|in] the logo?",
            "Which animal is [on|in] the logo?",
            "What does the logo [show|look like]?",
            "What animal does the logo [show|have]?",
            "What can be seen [on|in] the logo?",
            "Which [animal|bird] stands for Brindlewick?",
        ],
        unseen: ["What animal is on the logo of Brindlewick?", "Which bird does the logo show?"],
    },
    Fact {
        answer: "green",
        seen: [
            "What color are the vans[| of Brindlewick]?",
            "Which color do the vans [have|come in]?",
            "What is the color of [the|our] vans?",
            "In [what|which] color are the vans painted?",
            "How are the vans [painted|colored]?",
            "What color does a [van|Brindlewick van] have?",
        ],
        unseen: ["Tell me the color of the vans.", "Which color is a Brindlewick van?"],
    },
];

pub fn set() -> Set {
    Set {
        id: "facts",
        title: "Facts of a company",
        about: "Questions about a made-up company are answered from memory; a few new phrasings still get the wrong fact.",
        task: "facts",
        train: Part { file: "gallery/facts_train.jsonl", rows: Random(1987).shuffled(rows(|fact| &fact.seen)) },
        heldout: vec![("New phrasings", Part { file: "gallery/facts_heldout.jsonl", rows: rows(|fact| &fact.unseen) })],
        options: json!({ "steps": 200, "lr": 0.005, "warmup_steps": 10, "seq_len": 128 }),
    }
}

/// Every fact in all the words it is asked for.
fn rows(phrasings: impl Fn(&Fact) -> &[&'static str]) -> Vec<Row> {
    let asked = |fact: &Fact| phrasings(fact).iter().flat_map(|phrasing| choices(phrasing)).collect::<Vec<_>>();
    let answered = |fact: &Fact| asked(fact).into_iter().map(|question| (question, fact.answer.to_string()));
    FACTS.iter().flat_map(|fact| answered(fact).collect::<Vec<_>>()).collect()
}
