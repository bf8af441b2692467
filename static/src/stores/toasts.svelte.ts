export interface Toast {
  id: number;
  text: string;
  kind: 'info' | 'bad';
}

class Toasts {
  all = $state<Toast[]>([]);
  #next = 0;

  say(text: string, kind: Toast['kind'] = 'info'): void {
    if (this.all.some((t) => t.text === text)) return;
    const id = this.#next++;
    this.all = [...this.all.slice(-3), { id, text, kind }];
    setTimeout(() => this.close(id), kind === 'bad' ? 9000 : 5000);
  }

  close(id: number): void {
    this.all = this.all.filter((t) => t.id !== id);
  }
}

export const toasts = new Toasts();
