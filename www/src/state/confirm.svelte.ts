/** Asks before something is gone for good; parts/Confirm.svelte, once in each document, is what is seen of it. */

export interface Question {
  title: string;
  text: string;
  /** What the button that does it says. */
  action: string;
}

export const asking = $state<{ question: Question | null; answer: (yes: boolean) => void }>({ question: null, answer: () => {} });

/** Whether the user wants it; whoever closes the dialog does not. */
export function confirmed(question: Question): Promise<boolean> {
  asking.answer(false);
  return new Promise((answered) => {
    asking.question = question;
    asking.answer = (yes) => {
      asking.question = null;
      asking.answer = () => {};
      answered(yes);
    };
  });
}
