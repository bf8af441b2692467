import { mount } from 'svelte';
import '../ui/base.css';
import Admin from './Admin.svelte';

mount(Admin, { target: document.getElementById('app')! });
