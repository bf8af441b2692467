export type Theme = 'system' | 'light' | 'dark';

const KEY = 'codevo:theme';
const system = matchMedia('(prefers-color-scheme: dark)');

function stored(): Theme {
  try {
    const found = localStorage.getItem(KEY);
    return found === 'light' || found === 'dark' ? found : 'system';
  } catch {
    return 'system';
  }
}

class ThemeStore {
  choice = $state<Theme>(stored());
  #system = $state(system.matches);
  dark = $derived(this.choice === 'system' ? this.#system : this.choice === 'dark');

  constructor() {
    system.addEventListener('change', () => {
      this.#system = system.matches;
      this.#apply();
    });
  }

  set(choice: Theme): void {
    this.choice = choice;
    try {
      if (choice === 'system') localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, choice);
    } catch {
      // remembered for this page only
    }
    this.#apply();
  }

  #apply(): void {
    document.documentElement.dataset['theme'] = this.dark ? 'dark' : 'light';
  }
}

export const theme = new ThemeStore();
