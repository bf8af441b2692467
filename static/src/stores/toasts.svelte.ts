export interface Toast {
  id: number;
  text: string;
  kind: 'info' | 'bad';
  action?: ToastAction;
}

/** What can be done about what the toast says: 'Undo'. */
export interface ToastAction {
  title: string;
  act: () => void;
}

class Toasts {
  all = $state<Toast[]>([]);
  #next = 0;

  say(text: string, kind: Toast['kind'] = 'info', action?: ToastAction): void {
    if (!action && this.all.some((t) => t.text === text)) return;
    const id = this.#next++;
    // the same words with an action: only the newest does what it says
    const others = this.all.filter((t) => t.text !== text);
    this.all = [...others.slice(-3), { id, text, kind, ...(action ? { action } : {}) }];
    setTimeout(() => this.close(id), action ? 15_000 : kind === 'bad' ? 9000 : 5000);
  }

  close(id: number): void {
    this.all = this.all.filter((t) => t.id !== id);
  }
}

export const toasts = new Toasts();
